// Browsers load modules and models over HTTP alone: where the page was opened as a file, this says so at once.
if (location.protocol === "file:") {
  document.getElementById("start").classList.add("unserved");
  document.getElementById("state").textContent = "This page was opened as a file, and cannot load its model like that.";
}
