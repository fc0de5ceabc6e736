// Before anything is drawn: the colours that were chosen here last, or else the system's.
"use strict";
{
  const chosen = localStorage.getItem("argosy.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
