"""Names of languages, as instructions call them."""

from slm_jax.errors import UserError

_TABLE = (
  "af=Afrikaans,am=Amharic,ar=Arabic,as=Assamese,ast=Asturian,az=Azerbaijani,be=Belarusian,"
  "bg=Bulgarian,bn=Bengali,bs=Bosnian,ca=Catalan,ceb=Cebuano,ckb=Central Kurdish,"
  "cmn=Mandarin Chinese,cs=Czech,cy=Welsh,da=Danish,de=German,el=Greek,en=English,es=Spanish,"
  "et=Estonian,fa=Persian,ff=Fula,fi=Finnish,fil=Filipino,fr=French,ga=Irish,gl=Galician,"
  "gu=Gujarati,ha=Hausa,he=Hebrew,hi=Hindi,hr=Croatian,hu=Hungarian,hy=Armenian,id=Indonesian,"
  "ig=Igbo,is=Icelandic,it=Italian,ja=Japanese,jv=Javanese,ka=Georgian,kam=Kamba,"
  "kea=Kabuverdianu,kk=Kazakh,km=Khmer,kn=Kannada,ko=Korean,ky=Kyrgyz,lb=Luxembourgish,lg=Ganda,"
  "ln=Lingala,lo=Lao,lt=Lithuanian,luo=Luo,lv=Latvian,mi=Maori,mk=Macedonian,ml=Malayalam,"
  "mn=Mongolian,mr=Marathi,ms=Malay,mt=Maltese,my=Burmese,nb=Norwegian,ne=Nepali,nl=Dutch,"
  "nso=Northern Sotho,ny=Nyanja,oc=Occitan,om=Oromo,or=Odia,pa=Punjabi,pl=Polish,ps=Pashto,"
  "pt=Portuguese,ro=Romanian,ru=Russian,sd=Sindhi,sk=Slovak,sl=Slovenian,sn=Shona,so=Somali,"
  "sr=Serbian,sv=Swedish,sw=Swahili,ta=Tamil,te=Telugu,tg=Tajik,th=Thai,tr=Turkish,uk=Ukrainian,"
  "umb=Umbundu,ur=Urdu,uz=Uzbek,vi=Vietnamese,wo=Wolof,xh=Xhosa,yo=Yoruba,yue=Cantonese,"
  "zh=Chinese,zu=Zulu"
)
NAMES = {code: name for code, name in (entry.split("=") for entry in _TABLE.split(","))}


def code_of(name: str) -> str:
  """A data set's code without region or script: "zh-CN" → "zh", "es_419" → "es", "en" → "en"."""
  return name.replace("-", "_").split("_")[0].lower()


def name_of(language: str) -> str:
  """English name of a code with or without region; raises UserError for an unknown one."""
  code = code_of(language)
  if code not in NAMES:
    raise UserError(
      f"language {language!r} has no English name; add it to slm_jax/data/datasets/languages.py"
    )
  return NAMES[code]
