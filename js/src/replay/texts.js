import { addTexts } from "../shared/texts.js";

addTexts({
  "replay.no_kernel": ["This is a recording of a run: nothing here needs a kernel or the network.", "Die Aufzeichnung eines Laufs: Nichts hier braucht einen Kernel oder ein Netz."],
  "replay.samples": ["Answers while it learnt", "Antworten, während er lernte"],
  "replay.step": ["Step", "Schritt"],
  "replay.question": ["Prompt", "Frage"],
  "replay.first": ["First answer", "Erste Antwort"],
  "replay.then": ["At step {step}", "Bei Schritt {step}"],
  "replay.rows": ["What was trained", "Was gelernt wurde"],
  "replay.losses": ["The deeper the shade, the less a token was expected by the tuned model.", "Je dunkler, desto weniger hat das trainierte Modell ein Token erwartet."],
  "replay.plan": ["Planned and measured", "Geplant und gemessen"],
  "replay.what": ["What", "Was"],
  "replay.planned": ["Planned", "Geplant"],
  "replay.measured": ["Measured", "Gemessen"],
  "replay.why": ["Why it was planned so", "Warum so geplant wurde"],
  "replay.spec": ["The spec", "Die Spezifikation"],
  "replay.use": ["Use it in code", "Im Code verwenden"],
});
