// Set the colours before anything is drawn: the last choice, or else the system's.
"use strict";
{
  const chosen = localStorage.getItem("argosy.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
