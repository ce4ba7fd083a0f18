/* What Gradio's fields have no setting for, whenever one is drawn. `accepted`: media types. */
(accepted) => new MutationObserver(() => {
  // Gradio's autofocus scrolls a small window to the question
  const question = document.querySelector("#question textarea:not([data-seen])");
  if (question) {
    question.dataset.seen = "";
    question.focus({preventScroll: true});
  }
  // Gradio's own dialog offers any image
  for (const field of document.querySelectorAll('#picture input[type="file"]'))
    field.accept = accepted.join();
  // a button within a button, for assistive technology and the keyboard the inner one alone
  for (const outer of document.querySelectorAll("#picture button:has(button)")) {
    outer.setAttribute("role", "group");
    outer.tabIndex = -1;
  }
  // Gradio shows the name of a text that it lacks
  for (const each of document.querySelectorAll('[title="common.webcam"]'))
    each.title = each.ariaLabel = "Camera";
  // the unnamed button around an image in the conversation, after the image field
  const label = document.querySelector('#picture [data-testid="block-label"]');
  const name = label ? label.innerText.trim() : "";
  for (const frame of document.querySelectorAll("button:not([aria-label]) > .image-frame"))
    if (name) frame.parentElement.setAttribute("aria-label", name);
  // Gradio writes "ltr" on everything. What people and models say runs as it begins; the rest runs
  // as the page does.
  for (const text of document.querySelectorAll('.gradio-container [dir="ltr"]:not(details, details *)'))
    if (text.matches('[data-testid="user"], [data-testid="bot"], textarea')) text.dir = "auto";
    else text.removeAttribute("dir");
}).observe(document, {childList: true, subtree: true})
