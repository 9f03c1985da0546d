import { addTexts } from "../shared/texts.js";

addTexts({
  "finish": ["Result", "Was herauskam"],
  "finish.loss": ["Loss, first → mean of the last {n}", "Verlust, erster → Mittel der letzten {n}"],
  "finish.eval": ["Held-out loss since step {step}", "Prüfverlust seit Schritt {step}"],
  "finish.working": ["Asking the base and the tuned model…", "Frage Basis und trainiertes Modell…"],
  "finish.ask": ["Compare with the base", "Mit der Basis vergleichen"],
  "finish.ask.why": ["loads the model into this kernel", "lädt das Modell in diesen Kernel"],
  "finish.rows": ["Loss on {n} held-out rows: base {base}, tuned {tuned}", "Verlust auf {n} zurückgehaltenen Zeilen: Basis {base}, trainiert {tuned}"],
  "finish.lower": ["{lower} lower (95 % interval {low} to {high}); better on {better} of {n}", "{lower} niedriger (95-%-Intervall {low} bis {high}); besser auf {better} von {n}"],
  "finish.higher": ["{higher} higher, which is worse (95 % interval {low} to {high}); better on {better} of {n}", "{higher} höher, also schlechter (95-%-Intervall {low} bis {high}); besser auf {better} von {n}"],
  "finish.few": ["{lower} lower; better on {better} of {n}. Too few rows for an interval.", "{lower} niedriger; besser auf {better} von {n}. Für ein Intervall zu wenige Zeilen."],
  "finish.few.higher": ["{higher} higher, which is worse; better on {better} of {n}. Too few rows for an interval.", "{higher} höher, also schlechter; besser auf {better} von {n}. Für ein Intervall zu wenige Zeilen."],
  "finish.none": ["No rows were held out, so nobody knows whether it does better on new ones.", "Es wurden keine Zeilen zurückgehalten: ob es bei neuen besser ist, weiß niemand."],
  "finish.seen": ["it was trained on this row", "mit dieser Zeile trainiert"],
  "finish.before": ["Before", "Vorher"],
  "finish.after": ["After", "Nachher"],
  "finish.wanted": ["Expected", "Erwartet"],
  "finish.code": ["Use it in code", "Im Code verwenden"],
  "finish.copy": ["Copy", "Kopieren"],
  "finish.copied": ["Copied.", "Kopiert."],
  "finish.failed": ["It could not be compared: {error}", "Der Vergleich ging nicht: {error}"],
});
