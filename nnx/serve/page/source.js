"use strict";
// Where the answers come from: here, from the server. The rest of the page only knows these three functions.
//
//   models()              -> {input, drawing, pictures, classes, models: [...], columns: [...]}, see /docs
//   sample()              -> {index, split, label, image, row}
//   answer(input, parts)  -> [{model, label, probability, probabilities, prepared, layers, saliency}, ...]
//
// An input is one of {canvas}, {file}, {sample: index}, {row: {column: text}}.

const source = (() => {
  const MAX_FILE = 180000; // bytes: in base64 it fits into a request

  async function get(path, body) {
    const request = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    let response;
    try {
      response = await fetch(path, request);
    } catch {
      throw new Error("nnx serve does not answer: has it ended?");
    }
    const result = await response.json();
    if (!response.ok) throw new Error(result.error);
    return result;
  }

  async function asQuestion({ canvas, file, sample, row }) {
    if (canvas) return { image: canvas.toDataURL("image/png").split(",")[1] };
    if (file) return { image: await base64(file.size > MAX_FILE ? await shrink(file) : file) };
    return row ? { row } : { sample };
  }

  async function base64(blob) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(text);
  }

  // A smaller copy of a picture, as JPEG.
  async function shrink(file) {
    const bitmap = await pictures.open(file);
    for (let side = pictures.MAX_SIDE; ; side *= 0.7) {
      const canvas = pictures.shrink(bitmap, side);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
      if (blob.size <= MAX_FILE) return blob;
    }
  }

  return {
    models: () => get("api/models"),
    sample: () => get("api/sample"),
    answer: async (input, parts) => (await get("api/predict", { ...(await asQuestion(input)), parts })).answers,
  };
})();
