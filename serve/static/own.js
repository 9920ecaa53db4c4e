// An image of the visitor's own: what the model reconstructs of it, and how unlike its training images it finds it.

import { $, ask, chosen, make, say } from "./service.js";

const MEANINGS = {
  score: ["Anomaly score", (s) => `The ${s.features == null ? "pixel" : "feature"} error plus the KL divergence.`],
  features: ["Feature error", () => "How far image and reconstruction lie apart in the discriminator's features."],
  kl: ["KL divergence", () => "How far the image's latents lie from where the model expects latents."],
  pixels: ["Pixel error", () => "How far image and reconstruction lie apart pixel by pixel."],
};
const readAs = (r, words) => (r.labels.length ? `${words} ${r.labels.join(" + ")}` : "");
const view = { file: null, urls: [], asking: null };

function keep(blob) {
  const url = URL.createObjectURL(blob);
  view.urls.push(url);
  return url;
}

function clearResult() {
  view.asking?.abort();
  $("own-recon-figure").hidden = true;
  $("numbers").hidden = true;
}

/** Another model or class: what an earlier one made of the image no longer holds. */
export function draw() {
  say("");
  clearResult();
  const r = chosen();
  $("own-as").textContent = `to model ${r.model} ${r.version}${readAs(r, ", read as")}`;
  $("send").disabled = !view.file;
}

function take(file) {
  if (!file) return;
  view.urls.forEach(URL.revokeObjectURL);
  view.urls = [];
  view.file = file;
  $("own-unseen").hidden = true;
  $("own-image").hidden = false;
  $("own-image").alt = `Your image, ${file.name}`;
  $("own-image").src = keep(file);
  $("compare").hidden = false;
  draw();
}

async function send() {
  if (!view.file) return;
  clearResult();
  const r = chosen();
  const query = new URLSearchParams({ model: r.model, version: r.version });
  r.labels.forEach((name) => query.append("class", name));
  view.asking = new AbortController();
  const { signal } = view.asking;
  const headers = { "Content-Type": view.file.type || "application/octet-stream" };
  const options = { method: "POST", body: view.file, headers, signal };
  $("send").disabled = true;
  say("The service is working on the image…", "working");
  try {
    const [image, scores] = await Promise.all([
      ask(`v1/reconstruct?${query}`, options).then((response) => response.blob()),
      ask(`v1/anomaly?${query}`, options).then((response) => response.json()),
    ]);
    if (signal.aborted) return;
    $("own-recon").src = keep(image);
    $("own-recon").alt = `Reconstruction by model ${r.model} ${r.version}${readAs(r, " as")}`;
    $("own-recon-figure").hidden = false;
    const known = Object.entries(MEANINGS).filter(([name]) => scores[name] != null); // a plain VAE has no features
    $("scores").replaceChildren(...known.flatMap(([name, [title, meaning]]) => [
      make("dt", { textContent: title }),
      make("dd", {}, make("strong", { textContent: `${scores[name].toFixed(1)} nats` }), ` ${meaning(scores)}`),
    ]));
    $("numbers").hidden = false;
    say(`Done: the reconstruction is beside your image, the anomaly score is ${scores.score.toFixed(1)} nats.`, "good");
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  }
  if (!signal.aborted) $("send").disabled = false;
}

export function install() {
  const drop = $("drop");
  $("file").addEventListener("change", () => take($("file").files[0]));
  $("own-image").addEventListener("error", () => { $("own-image").hidden = true; $("own-unseen").hidden = false; });
  $("own-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    $("file").files = event.dataTransfer.files;
    take($("file").files[0]);
  });
}
