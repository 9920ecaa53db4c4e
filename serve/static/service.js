// What every part of the page uses: the state they share, questions to the service, addresses.

export const $ = (id) => document.getElementById(id);
export const state = { models: [], key: null };

/** An element with properties and children. Text is always set as text, never parsed as HTML. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function say(text, kind = "bad") {
  $("status").textContent = text;
  $("status").className = text ? kind : "";
  if (text && kind === "bad") $("status").scrollIntoView({ block: "nearest" });
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Ask the service. Whatever goes wrong is thrown as an Error whose message is for people, with the request's id. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(state.key && { "X-API-Key": state.key }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer; check that it runs, then reload the page.");
  }
  if (response.ok) return response;
  if (response.status === 401) $("key-box").hidden = false;
  const problem = await response.json().catch(() => ({})); // Ray Serve's own answers are plain text
  const id = problem.request_id ?? response.headers.get("X-Request-ID");
  const detail = problem.detail ?? `the service answered ${response.status} without a reason; try again in a moment`;
  throw new Error(sentence(detail) + (id ? ` (Request ${id})` : ""));
}

export const current = () => state.models.find((m) => m.name === $("model").value && m.version === $("version").value);

export const chosenClasses = () => [...$("classes").querySelectorAll(":checked")].map((box) => box.value);

/** What the controls on the left ask for. */
export function chosen() {
  const model = current();
  return {
    model: model.name, version: model.version, labels: model.classes.filter((name) => chosenClasses().includes(name)),
    latent: $("latent").value || "prior", truncation: Number($("truncation").value),
  };
}

const number = (value) => (Number.isInteger(value) ? value.toFixed(1) : String(value)); // as addresses write it

function query(r, way) {
  const parts = [];
  if (r.latent !== "prior") parts.push(`latent=${encodeURIComponent(r.latent)}`);
  if (r.truncation !== 1) parts.push(`truncation=${number(r.truncation)}`);
  if (way) parts.push(`to=${way.seed}/${way.index}`, `at=${number(way.at)}`);
  return parts.length ? `?${parts.join("&")}` : "";
}

/** An image's address. `way` is {seed, index, at} for a point on the way to another image. */
export const address = (r, seed, index, way) =>
  `${r.model}/${r.version}/${r.labels.join("+") || "none"}/${seed}/${index}${query(r, way)}`;

export const modelPath = (r) => `v1/models/${encodeURIComponent(r.model)}/${encodeURIComponent(r.version)}`;

export function imagePath(r, seed, index, way) {
  const classes = r.labels.map(encodeURIComponent).join("+") || "none";
  return `${modelPath(r)}/images/${classes}/${seed}/${index}.png${query(r, way)}`;
}

export function curl(path) {
  const absolute = new URL(path, document.baseURI).href;
  return `curl ${state.key ? '-H "X-API-Key: $KEY" ' : ""}-o image.png '${absolute.replaceAll("'", "%27")}'`;
}

export const fileName = (name, suffix) => `${name.replace(/[^\w.+-]+/g, "_")}.${suffix}`;

export async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // no clipboard where the page isn't on localhost or https
    button.textContent = "Select and copy it below";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}
