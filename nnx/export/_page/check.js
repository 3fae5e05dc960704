"use strict";
// The check of nnx export: a copy of this page contains inputs, and answers them all. Otherwise this does nothing.
if (document.getElementById("questions")) {
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = answerAll(JSON.parse(document.getElementById("questions").textContent));
  document.body.append(found);
}
