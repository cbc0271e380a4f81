// node build.mjs MODEL OUT: the page as a folder of static files. MODEL: what `clap-hf export embedded MODEL --web` wrote.

import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const [model, out] = process.argv.slice(2);
if (!model || !out) {
  console.error("expected two folders: node build.mjs MODEL OUT");
  process.exit(2);
}
const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const runtime = "ort-wasm-simd-threaded.wasm";

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
for (const name of ["index.html", "style.css", "icon.svg"]) cpSync(join(here, name), join(out, name));
cpSync(join(here, "space.md"), join(out, "README.md")); // of a static Space
const downloads = ["audio.onnx", "text.onnx", "model.json", "tokenizer.json", "tokenizer_config.json"];
if (existsSync(join(model, "calibration.bin"))) downloads.push("calibration.bin"); // not every model has one
for (const name of downloads) cpSync(join(model, name), join(out, name));
cpSync(join(modules, "onnxruntime-web", "dist", runtime), join(out, runtime));

const sizes = Object.fromEntries([runtime, ...downloads].map((name) => [name, statSync(join(out, name)).size]));
const bundle = (names, define) =>
  build({
    entryPoints: names.map((name) => join(here, name)),
    outdir: out,
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "linked",
    define: Object.fromEntries(Object.entries(define).map(([name, value]) => [name, JSON.stringify(value)])),
  });
await bundle(["main.js", "towers.js"], { SIZES: sizes });

const shell = ["index.html", "style.css", "icon.svg", "main.js", "towers.js"];
const hash = createHash("sha256");
for (const name of [...shell, ...Object.keys(sizes)]) hash.update(readFileSync(join(out, name)));
await bundle(["service_worker.js"], { VERSION: hash.digest("hex").slice(0, 16), SHELL: ["./", ...shell] });

const notices = ["onnxruntime-web", "@huggingface/tokenizers"].map((name) => {
  const { version, license } = JSON.parse(readFileSync(join(modules, name, "package.json")));
  return `${name} ${version}: ${license}`;
});
writeFileSync(join(out, "licenses.txt"), `clap-hf and its model: MIT\n${notices.join("\n")}\n`);
const bytes = Object.values(sizes).reduce((sum, size) => sum + size, 0);
console.log(`${out}: ${((bytes + shell.reduce((sum, name) => sum + statSync(join(out, name)).size, 0)) / 1e6).toFixed(1)} MB`);
