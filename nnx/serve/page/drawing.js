"use strict";
// A sheet of paper: strokes by mouse, touch, pen or keyboard, or a picture. Black on white, whatever the theme.

const createDrawing = (canvas, pen, changed) => {
  const SIZE = 560; // pixels of the canvas: two for each pixel of the page
  const SENT = 160; // pixels of the drawing that is sent: more changes no label, and takes longer
  const STEP = 14; // pixels that an arrow key moves the pen
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const sent = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  sent.width = sent.height = SENT;
  let strokes = []; // {points: [{x, y, width}], ...}
  let picture = null; // a bitmap below the strokes
  let current = null; // the stroke being drawn
  let width = 24 * 2;
  const keys = { x: SIZE / 2, y: SIZE / 4, down: false };

  function redraw() {
    context.fillStyle = "white";
    context.fillRect(0, 0, SIZE, SIZE);
    if (picture) {
      const scale = Math.min(SIZE / picture.width, SIZE / picture.height);
      const [w, h] = [picture.width * scale, picture.height * scale];
      context.imageSmoothingEnabled = scale < 4;
      context.drawImage(picture, (SIZE - w) / 2, (SIZE - h) / 2, w, h);
    }
    strokes.forEach((stroke) => stroke.forEach((_, n) => drawSegment(stroke, n)));
  }

  function drawSegment(stroke, n) {
    const from = stroke[Math.max(0, n - 1)], to = stroke[n];
    context.strokeStyle = "black";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = to.width;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
  }

  function begin(point) {
    if (picture) clear(true);
    current = [];
    strokes.push(current);
    extend([point]);
  }

  function extend(points) {
    for (const point of points) {
      current.push(point);
      drawSegment(current, current.length - 1);
    }
    changed("draw");
  }

  function end() {
    if (!current) return;
    current = null;
    changed("stroke");
  }

  function clear(silent) {
    strokes = [];
    picture = null;
    current = null;
    redraw();
    if (!silent) changed("clear");
  }

  function undo() {
    if (picture) return clear();
    strokes.pop();
    current = null;
    redraw();
    changed(strokes.length ? "stroke" : "clear");
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const pressure = event.pointerType === "pen" && event.pressure ? 0.5 + event.pressure : 1;
    return {
      x: ((event.clientX - box.left) * SIZE) / box.width,
      y: ((event.clientY - box.top) * SIZE) / box.height,
      width: width * pressure,
    };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    begin(place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!current || !canvas.hasPointerCapture(event.pointerId)) return;
    const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    extend((events.length ? events : [event]).map(place));
  });
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);

  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      keys.x = Math.max(0, Math.min(SIZE, keys.x + move[0] * STEP));
      keys.y = Math.max(0, Math.min(SIZE, keys.y + move[1] * STEP));
      if (keys.down) extend([{ x: keys.x, y: keys.y, width }]);
    } else if (event.key === " ") {
      keys.down = !keys.down;
      if (keys.down) begin({ x: keys.x, y: keys.y, width });
      else end();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      keys.down = false;
      clear();
    } else return;
    event.preventDefault();
    showPen();
  });
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && showPen());
  canvas.addEventListener("blur", () => {
    if (keys.down) end();
    keys.down = false;
    pen.hidden = true;
  });

  function showPen() {
    pen.hidden = false;
    pen.classList.toggle("down", keys.down);
    pen.style.left = `${(100 * keys.x) / SIZE}%`;
    pen.style.top = `${(100 * keys.y) / SIZE}%`;
  }

  redraw();
  return {
    undo,
    clear,
    setWidth: (value) => (width = 2 * value),
    isEmpty: () => !strokes.length && !picture,
    // Show a picture, which the next stroke replaces.
    show(bitmap) {
      clear(true);
      picture = bitmap;
      redraw();
    },
    // The drawing, as it is sent.
    image() {
      const small = sent.getContext("2d", { willReadFrequently: true });
      small.imageSmoothingQuality = "high";
      small.drawImage(canvas, 0, 0, SENT, SENT);
      return sent;
    },
  };
};
