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
  },
});
