"use strict";
// A form for a row of a table: a text and a slider for a number, a list for a category.

const createForm = (form, columns, changed) => {
  const MISSING = "\u0000"; // the choice that means no value; no category is called so
  const fields = {};

  columns.forEach((column, n) => {
    const box = document.createElement("div");
    box.className = "field";
    const label = document.createElement("label");
    label.textContent = column.name;
    label.htmlFor = `field-${n}`;
    box.append(label);
    const field = column.kind === "category" ? choice(column, n) : number(column, n, box);
    field.id = `field-${n}`;
    field.setAttribute("aria-describedby", `hint-${n}`);
    label.after(field);
    const hint = document.createElement("p");
    hint.id = `hint-${n}`;
    hint.className = "hint";
    hint.textContent = describe(column);
    box.append(hint);
    form.append(box);
    fields[column.name] = field;
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => changed());

  function describe({ kind, low, high, frequent }) {
    if (kind === "category") return frequent.length > 1 ? `most frequent: ${frequent.slice(0, 4).join(", ")}` : "";
    const range = `${round(low)} to ${round(high)}`;
    return frequent.length ? `${range}; most frequent ${frequent.slice(0, 4).join(", ")}` : range;
  }

  function round(value) {
    return String(Number(value.toPrecision(4)));
  }

  function number(column, n, box) {
    const text = document.createElement("input");
    text.inputMode = "decimal";
    text.autocomplete = "off";
    text.value = column.typical ?? "";
    const slider = document.createElement("input");
    slider.type = "range";
    slider.min = column.low;
    slider.max = column.high;
    slider.step = "any";
    slider.value = text.value;
    slider.setAttribute("aria-label", `${column.name}, slider`);
    slider.addEventListener("input", () => (text.value = round(Number(slider.value))));
    text.addEventListener("input", () => (slider.value = text.value));
    box.append(slider);
    return text;
  }

  function choice(column) {
    const list = document.createElement("select");
    for (const category of column.categories) list.add(new Option(category, category));
    list.add(new Option("(missing)", MISSING));
    list.value = column.typical ?? MISSING;
    return list;
  }

  return {
    row: () =>
      Object.fromEntries(
        Object.entries(fields).map(([name, field]) => [name, field.value === MISSING || field.value === "" ? null : field.value]),
      ),
    fill(row) {
      for (const [name, value] of Object.entries(row)) {
        const field = fields[name];
        field.value = value ?? (field.tagName === "SELECT" ? MISSING : "");
        const slider = field.parentElement.querySelector("input[type=range]");
        if (slider) slider.value = value;
      }
    },
  };
};
