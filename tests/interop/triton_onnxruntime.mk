# Triton's ONNX Runtime backend for the CPU, from its sources and the ONNX Runtime of .venv-triton:
#   make -f tests/interop/triton_onnxruntime.mk SOURCES=DIR
#   TRITON_ONNXRUNTIME=build/triton-onnxruntime .venv-test/bin/python -m pytest -m interop tests/interop/test_triton.py
# DIR holds checkouts of triton-inference-server's onnxruntime_backend, backend, core and common, all at branch
# r24.10 (the release of the server in nvidia-pytriton 0.7.0), of Tencent/rapidjson, and, in onnxruntime, the headers
# of ONNX Runtime's C API, of the installed release or an earlier one (onnxruntime_c_api.h and those it includes).
OUT := build/triton-onnxruntime
ONNXRUNTIME := $(shell .venv-triton/bin/python -c "from importlib.util import find_spec; print(find_spec('onnxruntime').submodule_search_locations[0])")/capi
LIBRARY := $(notdir $(wildcard $(ONNXRUNTIME)/libonnxruntime.so.*))
FOLDERS := $(SOURCES)/onnxruntime_backend/src $(SOURCES)/backend/src $(SOURCES)/common/src
# Without CUPTI, which tracks a GPU's memory.
FILES := $(filter-out %/device_memory_tracker.cc, $(wildcard $(SOURCES)/onnxruntime_backend/src/*.cc $(SOURCES)/backend/src/*.cc)) \
    $(addprefix $(SOURCES)/common/src/, async_work_queue.cc thread_pool.cc error.cc)
INCLUDE := $(FOLDERS) $(addprefix $(SOURCES)/, backend/include core/include common/include rapidjson/include onnxruntime)
CXXFLAGS := -std=c++17 -O1 -fPIC -w -DTRITON_ENABLE_STATS=1 $(addprefix -I, $(INCLUDE))
VPATH := $(FOLDERS)

$(OUT)/libtriton_onnxruntime.so: $(addprefix $(OUT)/objects/, $(notdir $(FILES:.cc=.o)))
	$(CXX) -shared -o $@ $^ -L$(ONNXRUNTIME) -l:$(LIBRARY) \
	    -Wl,--version-script=$(SOURCES)/onnxruntime_backend/src/libtriton_onnxruntime.ldscript
	ln -sf $(ONNXRUNTIME)/$(LIBRARY) $(OUT)/libonnxruntime.so.1

$(OUT)/objects/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c $< -o $@
