"use strict";
// The page: an input, and a card for each network with its answer.

const $ = (id) => document.getElementById(id);
const PARTS = ["prepared", "layers", "saliency"];
const MAX_BARS = 10; // classes that have a bar
const REASONS = 8; // columns of a table that have one
const QUIET = 700; // milliseconds without a change, until a screen reader is told

const percent = (value) => `${(100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 0 : 1)} %`;

let about; // what is served
let cards = [];
let input = null; // the latest input, null if there is none; a sample has its true class in `truth`
let truth = null; // the true class of the input that is answered
let latest = null; // the latest answers
let drawing, form;

// ---------------------------------------------------------------- answers

const asking = { now: false, again: false, timer: 0 };

// Ask for the latest input. While an answer is under way, only the latest of the next inputs is kept.
async function ask() {
  if (asking.now) return (asking.again = true);
  asking.now = true;
  do {
    asking.again = false;
    const asked = input;
    try {
      const answers = asked && (await source.answer(asked, PARTS));
      if (!input === !asked) {
        truth = asked?.truth ?? null;
        show(answers);
      }
    } catch (error) {
      complain(error);
    }
  } while (asking.again);
  asking.now = false;
}

function complain(error) {
  $("verdict").textContent = error.message;
  $("verdict").className = "error";
  speak();
}

function show(answers) {
  latest = answers;
  document.body.classList.toggle("empty", !answers);
  const consensus = answers && mostProbable(answers);
  cards.forEach((card, n) => card.show(answers && answers[n], consensus));
  $("verdict").textContent = answers ? verdict(answers, consensus) : invitation();
  $("verdict").className = answers && answers.some((answer) => answer.label !== consensus) ? "split" : "";
  speak();
}

function speak() {
  clearTimeout(asking.timer);
  asking.timer = setTimeout(() => ($("spoken").textContent = $("verdict").textContent), QUIET);
}

// The class with the largest sum of probabilities.
function mostProbable(answers) {
  const sums = about.classes.map((_, k) => answers.reduce((sum, answer) => sum + answer.probabilities[k], 0));
  return about.classes[sums.indexOf(Math.max(...sums))];
}

function verdict(answers, consensus) {
  const others = answers.filter((answer) => answer.label !== consensus);
  const known = truth === null ? "" : ` The true class is ${truth}.`;
  if (answers.length === 1) return `${answers[0].label}, with ${percent(answers[0].probability)}.${known}`;
  if (!others.length) return `All ${answers.length} say ${consensus}.${known}`;
  const said = others.map((answer) => `${answer.model} says ${answer.label}`).join(", ");
  return `They disagree: ${answers.length - others.length} of ${answers.length} say ${consensus}, ${said}.${known}`;
}

function invitation() {
  if (about.input === "row") return "Fill in the row.";
  if (about.drawing) return `Draw one of ${list(about.classes)}.`;
  return about.samples === false ? "Open an image." : "Open an image, or take a test sample.";
}

function list(names) {
  return names.length <= 12 ? names.join(" ") : `${names.slice(0, 10).join(" ")} … (${names.length} classes)`;
}

// ---------------------------------------------------------------- cards

function createCard(model) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => card.querySelector(selector);
  const accuracy =
    model.test_accuracy !== null ? `, ${percent(model.test_accuracy)} on test` : model.validation_accuracy !== null ? `, ${percent(model.validation_accuracy)} on validation` : "";
  find("h2").textContent = model.id;
  find(".about").textContent = `${model.architecture}, ${model.parameters.toLocaleString("en")} parameters${accuracy}`;
  card.setAttribute("aria-label", model.id);
  const isImage = about.input === "image";
  for (const name of [".seen", ".why", ".steps"]) find(name).hidden = !isImage;
  find(".reasons").hidden = isImage;
  find(".answer").classList.toggle("row", !isImage);
  for (const canvas of card.querySelectorAll(".seen canvas, .why canvas")) [canvas.height, canvas.width] = model.shape.slice(-2);
  const bars = Array.from({ length: Math.min(MAX_BARS, about.classes.length) }, (_, n) => createBar(find(".bars"), about.classes[n]));
  const reasons = isImage ? [] : Array.from({ length: Math.min(REASONS, about.columns.length) }, () => createBar(find(".reasons"), ""));
  const layers = model.layers.map((layer) => createLayer(find(".layers div"), layer));

  function show(answer, consensus) {
    const best = answer ? answer.label : "–";
    find(".label").textContent = best;
    find(".label").classList.toggle("long", best.length > 3);
    find(".probability").textContent = answer ? percent(answer.probability) : "";
    const wrong = answer && truth !== null && answer.label !== truth;
    const odd = answer && answer.label !== consensus;
    find(".badge").textContent = [odd && "disagrees", wrong && "wrong"].filter(Boolean).join(", ");
    card.classList.toggle("odd", Boolean(odd || wrong));
    showBars(answer);
    if (!answer) return;
    if (isImage) {
      const seen = answer.prepared.at(-1).image;
      pictures.drawImage(find(".seen canvas"), seen);
      pictures.drawContributions(find(".why canvas"), seen, answer.saliency);
      showSteps(find(".steps ol"), answer.prepared);
    } else showReasons(answer.saliency);
    answer.layers.forEach((layer, n) => pictures.drawLayer(layers[n], layer.kind, layer.values));
  }

  function showBars(answer) {
    const order = about.classes.map((_, k) => k);
    if (answer && order.length > MAX_BARS) order.sort((j, k) => answer.probabilities[k] - answer.probabilities[j]);
    bars.forEach((bar, n) => {
      const k = order[n], share = answer ? answer.probabilities[k] : 0;
      bar.set(about.classes[k], share, answer ? percent(share) : "", answer && about.classes[k] === answer.label);
    });
  }

  // The contribution of each column: the sum of those of its features.
  function showReasons(packed) {
    const contributions = pictures.values(packed);
    let start = 0;
    const sums = about.columns.map(({ name, features }) => {
      const sum = contributions.slice(start, (start += features)).reduce((a, b) => a + b, 0);
      return { name, sum: sum * packed.scale };
    });
    sums.sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
    const most = Math.abs(sums[0].sum) || 1;
    reasons.forEach((bar, n) => bar.set(sums[n].name, Math.abs(sums[n].sum) / most, sums[n].sum.toFixed(2), false, sums[n].sum < 0));
  }

  return { card, show };
}

function createBar(parent, name) {
  const row = document.createElement("li");
  const [label, track, fill, value] = ["span", "span", "span", "span"].map((tag) => document.createElement(tag));
  label.className = "name";
  track.className = "track";
  value.className = "value";
  label.textContent = name;
  track.append(fill);
  row.append(label, track, value);
  parent.append(row);
  return {
    set(text, share, shown, isBest, isNegative = false) {
      label.textContent = text;
      label.title = text;
      fill.style.transform = `scaleX(${share})`;
      value.textContent = shown;
      row.classList.toggle("best", Boolean(isBest));
      row.classList.toggle("negative", isNegative);
    },
  };
}

function createLayer(parent, { title, kind, shape }) {
  const figure = document.createElement("figure");
  figure.className = kind;
  const canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  caption.textContent = title.replace(/ \([^()]*\)$/, "");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption.textContent);
  pictures.prepareLayer(canvas, kind, shape);
  figure.append(caption, canvas);
  if (kind === "belief" && about.classes.length <= MAX_BARS) figure.append(createScale());
  parent.append(figure);
  return canvas;
}

// The classes below the columns of a belief.
function createScale() {
  const scale = document.createElement("p");
  scale.className = "scale";
  scale.setAttribute("aria-hidden", "true");
  scale.append(
    ...about.classes.map((name) => {
      const tick = document.createElement("span");
      tick.textContent = name.slice(0, 2);
      return tick;
    }),
  );
  return scale;
}

function showSteps(parent, steps) {
  while (parent.children.length > steps.length) parent.lastChild.remove();
  while (parent.children.length < steps.length) {
    const step = document.createElement("li");
    step.append(document.createElement("canvas"), document.createElement("b"), document.createElement("span"));
    step.firstChild.setAttribute("aria-hidden", "true");
    parent.append(step);
  }
  steps.forEach(({ step, image, top }, n) => {
    const [canvas, best, text] = parent.children[n].children;
    pictures.drawImage(canvas, image);
    best.textContent = `${top[0].label}, ${percent(top[0].probability)}`;
    text.textContent = step;
  });
}

// ---------------------------------------------------------------- inputs

function set(next, label = null) {
  input = next && { ...next, truth: label };
  ask();
}

function note(text) {
  $("note").textContent = text;
}

function drawn(what) {
  $("hint").hidden = !drawing.isEmpty();
  note("");
  set(drawing.isEmpty() ? null : { canvas: drawing.image() });
}

async function openFile(file) {
  stopCamera();
  try {
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (bitmap) drawing.show(bitmap);
    $("hint").hidden = Boolean(bitmap);
    note(file.name || "pasted image");
    set({ file });
  } catch (error) {
    complain(error);
  }
}

async function takeSample() {
  stopCamera();
  try {
    const sample = await source.sample();
    if (sample.row) form.fill(sample.row);
    else {
      const canvas = document.createElement("canvas");
      pictures.drawImage(canvas, sample.image);
      drawing.show(canvas);
      $("hint").hidden = true;
    }
    note(`${sample.split} sample ${sample.index}: ${sample.label}`);
    set(sample.row ? { row: form.row() } : { sample: sample.index }, sample.label);
  } catch (error) {
    complain(error);
  }
}

async function toggleCamera() {
  const video = $("video");
  if (video.srcObject) {
    const canvas = document.createElement("canvas");
    const side = Math.min(video.videoWidth, video.videoHeight);
    canvas.width = canvas.height = Math.min(side, 800);
    const [left, top] = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2];
    canvas.getContext("2d").drawImage(video, left, top, side, side, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => openFile(new File([blob], "photograph", { type: "image/jpeg" })), "image/jpeg", 0.92);
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.hidden = false;
    await video.play();
    $("camera").textContent = "Take it";
  } catch {
    stopCamera();
    note("There is no camera, or the browser may not use it.");
  }
}

function stopCamera() {
  const video = $("video");
  if (video.srcObject) for (const track of video.srcObject.getTracks()) track.stop();
  video.srcObject = null;
  video.hidden = true;
  $("camera").textContent = "Camera";
}

function connectDesk() {
  $("desk").hidden = false;
  $("pens").hidden = !about.drawing;
  $("open").hidden = $("camera").hidden = !about.pictures;
  $("hint").textContent = about.drawing ? "draw here" : "drop an image here";
  drawing = createDrawing($("drawing"), $("pen"), drawn);
  if (!about.drawing) $("drawing").inert = true;
  $("undo").onclick = () => drawing.undo();
  $("clear").onclick = () => drawing.clear();
  $("width").oninput = (event) => drawing.setWidth(event.target.valueAsNumber);
  $("open").onclick = () => $("file").click();
  $("file").onchange = (event) => event.target.files[0] && openFile(event.target.files[0]);
  $("camera").onclick = toggleCamera;
  $("sample").hidden = about.samples === false;
  $("sample").onclick = takeSample;
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      drawing.undo();
    }
  });
  if (!about.pictures) return;
  const firstImage = (files) => [...files].find((file) => file.type.startsWith("image/"));
  document.addEventListener("paste", (event) => {
    const file = firstImage(event.clipboardData.files);
    if (file) openFile(file);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const file = firstImage(event.dataTransfer.files);
    if (file) openFile(file);
    else note("That is not an image.");
  });
}

function connectForm() {
  form = createForm($("form"), about.columns, () => {
    note("");
    set({ row: form.row() });
  });
  if (about.samples !== false) {
    const button = document.createElement("button");
    button.type = "button";
    button.id = "sample";
    button.textContent = "Test sample";
    button.onclick = takeSample;
    $("sample").remove();
    $("form").prepend(button);
  }
  $("form").hidden = false;
  set({ row: form.row() });
}

// ---------------------------------------------------------------- start

async function start() {
  about = await source.models();
  const names = about.models.length === 1 ? `Ask ${about.models[0].id}` : `Ask ${about.models.length} networks`;
  $("title").textContent = names;
  document.title = `nnx: ${names.toLowerCase()}`;
  cards = about.models.map(createCard);
  $("cards").replaceChildren(...cards.map(({ card }) => card));
  $("cards").classList.toggle("single", cards.length === 1);
  show(null);
  if (about.input === "image") connectDesk();
  else connectForm();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(latest));
}

start().catch(complain);
