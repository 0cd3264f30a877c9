// transformers.js on a bundle: node peer.mjs FOLDER BUNDLE-NAME TASK < texts.json
import { readFileSync } from "node:fs";
import { env, pipeline } from "@huggingface/transformers";

const [folder, name, task] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = folder;
const model = await pipeline(task, name, { dtype: "fp32", device: "cpu" });
const texts = JSON.parse(readFileSync(0, "utf-8"));
if (task === "feature-extraction") {
  const vectors = [];
  for (const text of texts) vectors.push((await model(text, { pooling: "mean" })).tolist()[0]);
  console.log(JSON.stringify(vectors));
} else {
  console.log(JSON.stringify(await model(texts)));
}
