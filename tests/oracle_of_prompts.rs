//! Random edits of prompts against an oracle, as `oracle.rs` for files and sweeps.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::space::Space;

/// By the kind that reads prompts: what it makes depends on what they say, not on how that is written.
#[test]
fn random_edits_of_prompts_run_what_an_oracle_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let weights = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/phantom-clip.safetensors");
    let make = || {
        let space = Space::of_commands("");
        std::fs::copy(&weights, space.path("clip.safetensors")).unwrap();
        space
    };
    let space = make();
    // Files by name: their words and a comment, which tells the two apart: files of one content have one dictionary. Sizes of dictionaries: an axis.
    let mut prompts: BTreeMap<&str, (u32, u32)> = BTreeMap::from([("p0.yaml", (0, 0)), ("p1.yaml", (1, 100))]);
    let mut sizes = vec![2];
    let (mut dictionaries, mut readers) = (BTreeSet::new(), BTreeSet::new());
    let (mut history, mut ran) = (Vec::new(), [0, 0]);
    for _ in 0..14 {
        for (name, (word, comment)) in &prompts {
            let families =
                format!("families: {{lighting: [light {word}, dark light], surface: [mucus {word}, blood]}}");
            let templates = "class_prompt: \"A {class}\"\ndomain_prompt: \"An image with {domain}\"\nclass_domain_prompt: \"A {class} with {domain}\"";
            space.write(name, format!("# {comment}\n{templates}\nclasses: [polyp]\n{families}\n"));
        }
        space.write("siteline.yaml", format!("siteline: 1\nname: study\nbackbones: {{tiny: {{weights: clip.safetensors}}}}\naxes:\n  backbone: [tiny]\n  words: [{{name: p0, prompts: p0.yaml}}, {{name: p1, prompts: p1.yaml}}]\n  size: {sizes:?}\nstages:\n  dictionary: {{uses: confounder-dictionary, per: [backbone, words, size]}}\n  read: {{run: 'find -L inputs -type f | wc -l >out', per: [words], needs: {{dictionaries: dictionary}}, outputs: [out]}}\n"));
        let mut expected = BTreeSet::new();
        for name in ["p0", "p1"] {
            let (word, comment) = prompts[format!("{name}.yaml").as_str()];
            for size in &sizes {
                if dictionaries.insert((name, word, comment, *size)) {
                    expected.insert(format!("dictionary[backbone=tiny,words={name},size={size}]"));
                    ran[0] += 1;
                }
            }
            if readers.insert((name, word, sizes.iter().copied().collect::<BTreeSet<_>>())) {
                expected.insert(format!("read[words={name}]"));
                ran[1] += 1;
            }
        }
        let said = space.run(&["run", "--plain"]);
        assert_eq!(said.code, 0, "{history:?}: {}", said.stderr);
        assert_eq!(said.executed(), expected, "{history:?}: {}", said.stderr);
        let clean = make();
        for file in ["siteline.yaml", "p0.yaml", "p1.yaml"] {
            clean.write(file, space.read(file));
        }
        clean.executed(&[]);
        assert_eq!(space.artifacts(), clean.artifacts(), "{history:?}");
        let name = *["p0.yaml", "p1.yaml"].choose(&mut rng).unwrap();
        let (word, comment) = prompts.get_mut(name).unwrap();
        history.push(match rng.random_range(0..5) {
            0 | 1 => {
                *word = rng.random_range(0..4);
                format!("words of {name}: {word}")
            }
            2 => {
                *comment += 1;
                format!("comment of {name}: {comment}")
            }
            3 => {
                sizes = if sizes.len() == 1 { vec![2, 4] } else { vec![2] };
                format!("sizes {sizes:?}")
            }
            _ => {
                space.write(name, space.read(name));
                format!("touch of {name}")
            }
        });
    }
    assert!(ran[0] > 4 && ran[1] > 2 && ran[1] < ran[0], "{ran:?}: the edits are not what they should be: {history:?}");
}
