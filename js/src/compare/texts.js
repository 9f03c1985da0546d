import { addTexts } from "../shared/texts.js";

addTexts({
  en: {
    "compare": "Compare runs",
    "compare.smoothing": "Smoothing",
    "compare.chart": "Losses of {n} runs over steps.",
    "compare.run": "Run",
    "compare.state": "State",
    "compare.now": "Loss",
    "compare.best": "Best held-out",
    "compare.specs": "What differs",
    "compare.same": "The specs are the same.",
    "compare.key": "Key",
    "compare.title": "Loss over steps",
    "compare.axis": "Loss, smoothed",
    "compare.apart": "These runs have different tokenizers, so their losses cannot be compared: a lower one need not be a better model. Compare their answers in the chat.",
  },
  de: {
    "compare": "Läufe vergleichen",
    "compare.smoothing": "Glättung",
    "compare.chart": "Verluste von {n} Läufen über die Schritte.",
    "compare.run": "Lauf",
    "compare.state": "Zustand",
    "compare.now": "Verlust",
    "compare.best": "Bester Prüfverlust",
    "compare.specs": "Was verschieden ist",
    "compare.same": "Die Spezifikationen sind gleich.",
    "compare.key": "Schlüssel",
    "compare.title": "Verlust über die Schritte",
    "compare.axis": "Verlust, geglättet",
    "compare.apart": "Diese Läufe zerlegen Text in verschiedene Tokens: ihre Verluste messen nicht dasselbe, und der niedrigere muss nicht das bessere Modell sein. Antworten lassen sich im Gespräch vergleichen.",
  },
});
