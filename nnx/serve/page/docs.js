"use strict";
// Shows openapi.json to read: each path, then each schema.

function add(parent, tag, text = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  parent.append(element);
  return element;
}

function nameOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(nameOf).join(" or ");
  if (schema.enum || schema.const) return (schema.enum || [schema.const]).map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `list of ${nameOf(schema.items)}`;
  if (schema.type === "object" && schema.additionalProperties) return `object of ${nameOf(schema.additionalProperties)}`;
  return schema.type || "";
}

function table(parent, rows) {
  const body = add(parent, "table");
  for (const row of rows) {
    const line = add(body, "tr");
    add(add(line, "td"), "code", row[0]);
    row.slice(1).forEach((cell) => add(line, "td", cell));
  }
}

async function start() {
  const parent = document.getElementById("reference");
  const description = await (await fetch("openapi.json")).json();
  add(parent, "h2", "Try it");
  const host = location.origin;
  add(parent, "pre", `curl ${host}/api/models\n\nbase64 -w0 seven.png | sed 's/.*/{"image": "&"}/' |\n  curl -H 'Content-Type: application/json' -d @- ${host}/api/predict`);
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      add(parent, "h2", `${method.toUpperCase()} ${path}`);
      add(parent, "p", operation.description);
      const json = (content) => nameOf(content?.content?.["application/json"]?.schema);
      const rows = (operation.parameters || []).map((one) => [`?${one.name}=`, nameOf(one.schema), one.description || ""]);
      if (operation.requestBody) rows.push(["body", json(operation.requestBody), ""]);
      for (const [code, response] of Object.entries(operation.responses)) rows.push([code, json(response), response.description]);
      table(parent, rows);
    }
  }
  for (const [name, schema] of Object.entries(description.components.schemas)) {
    if (!schema.properties || name.includes("Validation")) continue;
    add(parent, "h2", name);
    add(parent, "p", schema.description);
    table(parent, Object.entries(schema.properties).map(([key, value]) => [key, nameOf(value), value.description || ""]));
  }
}

start();
