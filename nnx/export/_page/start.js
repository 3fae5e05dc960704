"use strict";
// What the exporter has put into this page.
const facts = JSON.parse(document.getElementById("facts").textContent);
const weights = document.getElementById("weights").textContent;
