import { addTexts } from "../shared/texts.js";

addTexts({
  "compare": ["Compare runs", "Läufe vergleichen"],
  "compare.smoothing": ["Smoothing", "Glättung"],
  "compare.chart": ["Losses of {n} runs over steps.", "Verluste von {n} Läufen über die Schritte."],
  "compare.run": ["Run", "Lauf"],
  "compare.state": ["State", "Zustand"],
    "compare.best": ["Best held-out", "Bester Prüfverlust"],
  "compare.specs": ["What differs", "Was verschieden ist"],
  "compare.same": ["The specs are the same.", "Die Spezifikationen sind gleich."],
  "compare.key": ["Key", "Schlüssel"],
  "compare.title": ["Loss over steps", "Verlust über die Schritte"],
  "compare.axis": ["Loss, smoothed", "Verlust, geglättet"],
  "compare.apart": ["These runs have different tokenizers, so their losses cannot be compared: a lower one need not be a better model. Compare their answers in the chat.", "Diese Läufe zerlegen Text in verschiedene Tokens: ihre Verluste messen nicht dasselbe, und der niedrigere muss nicht das bessere Modell sein. Antworten lassen sich im Gespräch vergleichen."],
});
