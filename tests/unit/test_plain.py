from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mbexport.runtime.plain import plain


def test_answers_become_what_json_takes() -> None:
    vector = np.array([0.1, 2], np.float32)
    answer = [{"label": "a", "score": np.float32(0.1), "start": np.int64(3)}, vector, (vector, None), 0.5, True]
    found = plain(answer)
    tenth = float(np.float32(0.1))
    assert found == [{"label": "a", "score": tenth, "start": 3}, [tenth, 2.0], [[tenth, 2.0], None], 0.5, True]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), np.array([[1, -np.inf]], np.float32)])
def test_what_is_not_finite_is_told(value: Any) -> None:
    with pytest.raises(ValueError, match="the model computed"):
        plain([{"score": value}])
