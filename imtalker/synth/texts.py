"""Sentences to be spoken: plain words in many languages, joined at random; variety of sounds matters, not sense."""
from __future__ import annotations

import numpy as np

_ENGLISH = {
    "who": "my neighbour|the young teacher|a famous painter|our whole family|the boy from the bakery|"
           "every visitor|nobody|the old captain|her brother|that quiet woman|the judge|a tall stranger|"
           "the children|my father|Professor Vaughan|Beth|Thomas|Olivia|Mr. Webb|a group of friends|"
           "the first speaker|your voice|the blue bird|somebody|the museum guide",
    "did": "bought|found|painted|remembered|opened|forgot|would love|described|brought home|finally fixed|"
           "should have seen|pushed away|measured|gave me|is looking for|wrote about|always admired|"
           "cannot believe|photographed|moved|thought about|promised us|shouted at|borrowed|will visit|chose|"
           "enjoys|whispered something about|carried",
    "what": "a large brown box|five purple umbrellas|the bridge over the river|fresh bread and butter|"
            "an old photograph|the missing page|a very small cup of coffee|both of the maps|"
            "the village by the sea|some good advice|a pair of heavy boots|the whole story|three thousand stamps|"
            "the church tower|a broken bicycle|apple pie|my favourite film|the weather forecast|a cheap ticket|"
            "the noise outside|something wonderful|the garden gate|a bowl of vegetable soup|twelve eggs|"
            "the answer|an empty room|a piano|the last train|a bunch of yellow flowers",
    "when": "this morning|before breakfast|on Wednesday|in the middle of the night|last September|"
            "whenever it rains|at noon|after the concert|once in a while|forty years ago|for the first time|"
            "every other week|just now|in spring|while we were away|without a word|with both hands|very slowly|"
            "from above|behind the house|in front of the mirror",
    "how": "I think that|to be honest|believe it or not|as far as I know|well|you know|maybe|in my opinion|"
           "of course|oh, wait a moment|imagine that|people say that|for example|by the way|fortunately|"
           "if you ask me|once again",
    "ask": "have you ever been to|would you please show me|how much is|why do we need|can anybody explain|"
           "where should I put|what do you think about|do you remember|shall we talk about|who is responsible for|"
           "when did you hear about",
    "say": "Good morning, and welcome.|Thank you very much.|That is enough for today.|Please sit down.|"
           "Yes, absolutely.|No, not at all.|Hello, my name is Fiona.|See you tomorrow.|Wow, that's amazing.|"
           "I beg your pardon?|Peter Piper picked a peck of pickled peppers.|She sells sea shells.|How are you?|"
           "Let me think about it.|Mum baked a big plum pudding.|Five vivid violets.|Through thick and thin.|"
           "Whether the weather is fine or not.",
}
_WORDS = {
    "de": "Brücke Apfel Wasser Fenster schön über Mutter Zwiebel Freund Straße heute möchte gehen langsam "
          "vielleicht Pfeffer Katze Uhr zwanzig Quelle Buch Mädchen Abend wunderbar bitte Papier Vogel Himmel "
          "spielen trinken warum Leute",
    "fr": "bonjour maman pomme fenêtre beaucoup rouge voiture oiseau huit famille jardin peut-être boire livre "
          "montagne bleu soupe papier vraiment chanson feuille peindre longtemps question bientôt chemin village "
          "vendredi garçon merveille",
    "es": "mañana puente perro blanco mujer ciudad vamos pequeño fuego leche zapato jugar hermano verde palabra "
          "bueno campana huevo ventana libro querer viejo música sombrero aunque caballo limpio pregunta lluvia "
          "bonito amigo noche",
    "it": "buongiorno finestra pane mamma piccolo acqua viaggio bellissimo giovane famiglia gatto scuola vento "
          "pesce domani libro ponte zucchero quando campo bianco sempre musica foglia chiave uomo parlare giallo "
          "strada prezzo",
    "nl": "goedemorgen brug moeder water fiets raam mooi boek vogel straat groot appel vriend huis gezellig "
          "papier schip vandaag lopen bloem kaas langzaam vijf zee wind muur brood gisteren keuken plezier",
    "pl": "dzień dobry mama woda okno chleb piękny książka szkoła wieczór bardzo przyjaciel mleko ptak zamek "
          "jabłko powoli ulica żółty człowiek muzyka pięć babcia deszcz chmura most śpiewać wiosna poczta",
    "pt": "bom dia ponte água janela mãe livro pequeno cidade amanhã vermelho pássaro família música palavra "
          "verde cavalo chuva devagar amigo noite jogar leite homem caminho branco você obrigado festa",
    "ru": "доброе утро мама вода окно хлеб книга город большой птица песня вечер яблоко друг медленно улица белый "
          "весна бабушка мост погода человек музыка пять красивый дорога почта фильм вместе",
    "sv": "god morgon bro mamma vatten fönster bok stad vacker fågel äpple vän långsamt gata vit vår människa "
          "musik fem papper hus sjö blomma gammal kanske tjugo väg bröd himmel",
    "tr": "günaydın köprü anne su pencere kitap şehir güzel kuş elma arkadaş yavaş sokak beyaz bahar insan müzik "
          "beş kağıt deniz çiçek ev belki yirmi ekmek bulut film yağmur öğretmen bugün",
    "fi": "huomenta silta äiti vesi ikkuna kirja kaupunki kaunis lintu omena ystävä hitaasti katu valkoinen kevät "
          "ihminen musiikki viisi paperi meri kukka talo ehkä leipä pilvi sade opettaja tänään",
    "cs": "dobrý den most maminka voda okno kniha město krásný pták jablko přítel pomalu ulice bílý jaro člověk "
          "hudba pět papír moře květina dům možná chléb mrak déšť učitel dnes",
    "ja": "おはよう はし みず まど ほん まち きれい とり りんご ともだち ゆっくり しろい はる ひと おんがく かみ "
          "うみ はな いえ たぶん パン くも あめ せんせい きょう ふゆ みなさん ありがとう",
    "cmn": "早上好 妈妈 爸爸 苹果 朋友 漂亮 学校 今天 明天 北京 音乐 飞机 米饭 慢慢 白色 春天 老师 桥 水 窗户 书 "
           "城市 小鸟 花 房子 也许 面包 雨 谢谢 不错",
    "hi": "नमस्ते पानी खिड़की किताब शहर सुंदर पक्षी सेब दोस्त धीरे सड़क सफेद आदमी संगीत पाँच कागज समुद्र फूल घर "
          "शायद रोटी बादल बारिश आज",
    "ar": "صباح الخير ماء نافذة كتاب مدينة جميل طائر تفاح صديق شارع أبيض ربيع موسيقى خمسة بحر وردة بيت ربما خبز "
          "غيم مطر معلم اليوم",
}
LANGUAGES = ("en", *_WORDS)


def sentence(rng: np.random.Generator, language: str = "en") -> str:
    """One random sentence of about two to five seconds; `language` is one of LANGUAGES."""
    if language != "en":
        words = list(rng.choice(_WORDS[language].split(), rng.integers(4, 10)))
        if rng.random() < .3:
            words.insert(int(rng.integers(len(words))), str(rng.integers(2, 2000)))
        if rng.random() < .5:
            words.insert(len(words) // 2, ",")
        return " ".join(words).replace(" ,", ",") + str(rng.choice((".", "!", "?"), p=(.7, .15, .15)))

    def one(part: str) -> str:
        return str(rng.choice(_ENGLISH[part].split("|")))

    form = rng.choice(5, p=(.4, .2, .15, .1, .15))
    if form == 0:
        text = f"{one('who')} {one('did')} {one('what')} {one('when')}."
    elif form == 1:
        text = f"{one('how')}, {one('who')} {one('did')} {one('what')}."
    elif form == 2:
        text = f"{one('ask')} {one('what')}?"
    elif form == 3:
        text = f"{rng.integers(2, 100)}, {rng.integers(1800, 2100)}, and {rng.integers(2, 30)} {one('when')}."
    else:
        text = f"{one('say')} {one('say')}"
    return text[0].upper() + text[1:]
