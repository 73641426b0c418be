"""Golden token ids of CLIP's tokenizer: the shipped prompts and sentences that are harder.

Run with: pip install open_clip_torch==3.3.0 ftfy==6.3.1 pyyaml==6.0.4; python make_tokens.py
Writes tokens.json beside itself: text to ids, start and end included, nothing cut and nothing padded.
"""

import json
import pathlib

import open_clip
import yaml

here = pathlib.Path(__file__).parent
tokenizer = open_clip.SimpleTokenizer()
texts = {
    "A polyp in an endoscopic image", "An endoscopy  image with narrow-band imaging", "", " ", "A",
    "it's the patient's; they've said we'll, I'd, I'm, you're", "DON'T SHOUT", "3 polyps of 12.5 mm (0-IIa/LST), 2024-11-25",
    "one\ttab and\nline ends  \r\n at   the end ", "co-operate—a dash – another … dots", "naïve façade, Ångström, ß, Œuvre, ÉCLAIR",
    "Темная область", "暗い照明の息肉", "مخاط", "emoji 🙂 and 👩‍⚕️", "µm², 37 °C, ±5 %", "a_b __init__ #1 @home !!! ??? <br/> [x]",
    "&amp;lt; 5 mm &quot;flat&quot; &eacute;", "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "'s 't're 'round 'll", "e\u0301 as two characters", "half\u00a0space and \u3000wide space", "0123456789 1,000,000",
    "the lesion’s “edge” and ‘rim’", "patient&rsquo;s &ldquo;edge&rdquo; e&#769;", "the patientʼs", "a < b &rsquo; c",
}
for path in sorted((here.parent.parent.parent / "manifests/prompts").glob("*.yaml")):
    prompts = yaml.safe_load(path.read_text())
    domains = [word for words in prompts["families"].values() for word in words]
    for name in prompts["classes"]:
        texts.add(prompts["class_prompt"].replace("{class}", name))
        texts.update(prompts["class_domain_prompt"].replace("{class}", name).replace("{domain}", word) for word in domains)
    texts.update(prompts["domain_prompt"].replace("{domain}", word) for word in domains)

ids = {text: [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id] for text in sorted(texts)}
lines = ",\n".join(f"{json.dumps(text)}: {json.dumps(found)}" for text, found in ids.items())
(here / "tokens.json").write_text("{\n" + lines + "\n}\n")
