//! Keys: any changed part changes the key and is named by `why`; what is no part changes nothing.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use siteline_cache::{Digest, Parts, Record};
use siteline_pipeline::key::{KeyFile, KeyParts, Recipe};
use siteline_pipeline::why;

fn digest(text: &str) -> Digest {
    Digest::of_bytes(text.as_bytes())
}

fn file(input: &str, role: &str, point: &[(&str, &str)], label: &str, content: &str) -> KeyFile<'static> {
    let point = point.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect();
    KeyFile {
        input: Cow::Owned(input.to_owned()),
        role: Cow::Owned(role.to_owned()),
        point: Cow::Owned(point),
        label: Cow::Owned(label.to_owned()),
        digest: digest(content),
    }
}

fn recipe(params: Value) -> Recipe {
    Recipe {
        kind: "train".into(),
        code: BTreeMap::from([("base".into(), digest("code").to_string())]),
        libraries: BTreeMap::from([("tch".into(), "0.24.0".into())]),
        params: params.as_object().unwrap().clone(),
    }
}

fn record(parts: &KeyParts) -> Record {
    Record {
        key: parts.key(),
        parts: Parts::of(parts).unwrap(),
        instance: "train".into(),
        manifest: "m".into(),
        kind: "train".into(),
        run: "r".into(),
        started_ms: 0,
        finished_ms: 0,
        inputs: vec![],
        sources: vec![],
        outputs: vec![],
        metrics: BTreeMap::new(),
        environment: BTreeMap::new(),
    }
}

/// One literal key for each version of the format: whoever changes the format sees it here.
#[test]
fn the_format_is_pinned() {
    let recipe = recipe(json!({"epochs": 20, "lr": 0.005, "group": {"a": [1, "x", null, true]}}));
    let files = vec![
        file("features", "output", &[("site", "A")], "features.parquet", "a"),
        file("features", "output", &[("site", "B")], "features.parquet", "b"),
        file("raw", "image", &[], "p01", "pixels"),
    ];
    let key = KeyParts::new(&recipe, files).key();
    assert_eq!(key.to_string(), "9f86b7bcb053e8fab3f76665a46946bdd3f232df71d8a8974f585b8e45a2e054");
}

/// A part that can be changed, as a path into the recipe or the files.
#[derive(Clone, Debug)]
enum Edit {
    Kind(String),
    Code(String),
    Library(String),
    Param(String, Value),
    NewParam(String),
    /// A group with one name in it becomes a name with a dot.
    Dotted,
    Content(usize, String),
    Label(usize, String),
    Role(usize, String),
    Input(usize, String),
    Point(usize, String),
    Gone(usize),
}

/// Values of parameters, of which many read like others.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (0..3i64).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        "[01]|true|null|\\{\\}|\\[\\]|\"1\"|[a-z]{1,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..2).prop_map(Value::from),
            proptest::collection::btree_map("[ab]|a\\.b", inner, 0..2).prop_map(|map| json!(map)),
        ]
    })
}

fn edits() -> impl Strategy<Value = Edit> {
    let word = "[a-z]{3,8}";
    prop_oneof![
        word.prop_map(Edit::Kind),
        word.prop_map(Edit::Code),
        word.prop_map(Edit::Library),
        ("[abc]", values()).prop_map(|(name, value)| Edit::Param(name, value)),
        word.prop_map(|name| Edit::NewParam(format!("new-{name}"))),
        Just(Edit::Dotted),
        (0..3usize, word).prop_map(|(f, text)| Edit::Content(f, text)),
        (0..3usize, word).prop_map(|(f, text)| Edit::Label(f, text)),
        (0..3usize, word).prop_map(|(f, text)| Edit::Role(f, format!("r-{text}"))),
        (0..3usize, word).prop_map(|(f, text)| Edit::Input(f, format!("i-{text}"))),
        (0..3usize, word).prop_map(|(f, text)| Edit::Point(f, format!("p-{text}"))),
        (0..3usize).prop_map(Edit::Gone),
    ]
}

fn files() -> Vec<KeyFile<'static>> {
    vec![
        file("features", "output", &[("site", "A")], "f", "one"),
        file("features", "output", &[("site", "B")], "f", "two"),
        file("raw", "image", &[], "p1", "three"),
    ]
}

/// The settings in a value by their names as `why` gives them: groups are taken apart, and a name that reads like two is quoted.
fn settings(name: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value.as_object().filter(|map| !map.is_empty()) {
        None => drop(into.insert(name.to_owned(), value.clone())),
        Some(map) => map.iter().for_each(|(key, value)| {
            let key = if key.contains('.') { format!("{key:?}") } else { key.clone() };
            settings(&format!("{name}.{key}"), value, into);
        }),
    }
}

/// The value that a text of `why` stands for.
fn meant(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// Makes an edit. Returns sets of words: `why` must have a line with all words of each.
fn apply(edit: &Edit, recipe: &mut Recipe, files: &mut Vec<KeyFile<'static>>) -> Vec<Vec<String>> {
    let short = |text: &str| digest(text).short();
    // A file that is told by other words than before is gone under the old and new under the new ones.
    let moved = |file: &KeyFile, old: &str, new: &str| {
        let content = file.digest.short();
        vec![vec![old.to_owned(), "gone".into(), content.clone()], vec![new.to_owned(), "new".into(), content]]
    };
    match edit.clone() {
        Edit::Kind(kind) => {
            let old = std::mem::replace(&mut recipe.kind, kind.clone());
            vec![vec!["kind".into(), old, kind]]
        }
        Edit::Code(text) => {
            recipe.code.insert("base".into(), digest(&text).to_string());
            vec![vec!["code base".into(), short("code"), short(&text)]]
        }
        Edit::Library(version) => {
            recipe.libraries.insert("tch".into(), version.clone());
            vec![vec!["library tch".into(), "0.24.0".into(), version]]
        }
        Edit::Param(name, value) => {
            recipe.params.insert(name.clone(), value).unwrap();
            // What the values read like is the business of the caller, which compares them.
            vec![vec![format!("parameter {name}")]]
        }
        Edit::NewParam(name) => {
            recipe.params.insert(name.clone(), json!("x"));
            vec![vec![format!("parameter {name}"), "new".into(), "x".into()]]
        }
        Edit::Dotted => {
            recipe.params.remove("group");
            recipe.params.insert("group.x".into(), json!(1));
            vec![vec!["parameter \"group.x\"".into(), "new".into()], vec!["parameter group.x".into(), "gone".into()]]
        }
        Edit::Content(index, text) => {
            let old = std::mem::replace(&mut files[index].digest, digest(&text));
            vec![vec![files[index].label.to_string(), old.short(), short(&text)]]
        }
        Edit::Label(index, text) => {
            let old = std::mem::replace(&mut files[index].label, Cow::Owned(text.clone()));
            moved(&files[index], &old, &text)
        }
        Edit::Role(index, text) => {
            let old = std::mem::replace(&mut files[index].role, Cow::Owned(text.clone()));
            moved(&files[index], if old == "output" { "input" } else { &old }, &text)
        }
        Edit::Input(index, text) => {
            let old = std::mem::replace(&mut files[index].input, Cow::Owned(text.clone()));
            moved(&files[index], &old, &text)
        }
        Edit::Point(index, text) => {
            let old = files[index].point.get("site").cloned().unwrap_or_else(|| "of raw".into());
            files[index].point = Cow::Owned(BTreeMap::from([("site".to_owned(), text.clone())]));
            moved(&files[index], &old, &text)
        }
        Edit::Gone(index) => {
            let gone = files.remove(index);
            vec![vec![gone.label.to_string(), "gone".into(), gone.digest.short()]]
        }
    }
}

proptest! {
    #[test]
    fn any_changed_part_changes_the_key_and_is_named(a in values(), b in values(), c in values(), edit in edits()) {
        let before_recipe = recipe(json!({"a": a, "b": b, "c": c, "group": {"x": 1}}));
        if let Edit::Param(name, value) = &edit {
            prop_assume!(before_recipe.params[name] != *value);
        }
        let before = KeyParts::new(&before_recipe, files());
        let (mut after_recipe, mut after_files) = (before_recipe.clone(), files());
        let told = apply(&edit, &mut after_recipe, &mut after_files);
        let after = KeyParts::new(&after_recipe, after_files);
        prop_assert_ne!(before.key(), after.key());
        let changes = why::changes(&record(&before), &after);
        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let has = |words: &Vec<String>| lines.iter().any(|line| words.iter().all(|word| line.contains(word.as_str())));
        prop_assert!(told.iter().all(has), "{:?} is not told by {:?}", edit, lines);
        prop_assert!(changes.iter().all(|change| change.before != change.after), "{:?}", lines);
    }

    /// Not just that something changed: each setting that differs, with the value that it had and the value that it has.
    #[test]
    fn each_setting_that_differs_is_told_with_its_old_and_its_new_value(old in values(), new in values()) {
        let recipes = [&old, &new].map(|value| recipe(json!({"a": value})));
        let [before, after] = recipes.each_ref().map(|recipe| KeyParts::new(recipe, files()));
        let [had, has] = [&old, &new].map(|value| {
            let mut all = BTreeMap::new();
            settings("parameter a", value, &mut all);
            all
        });
        let changes = why::changes(&record(&before), &after);
        let told: BTreeMap<String, [Option<Value>; 2]> = changes
            .into_iter()
            .map(|change| (change.what, [change.before, change.after].map(|text| text.map(|text| meant(&text)))))
            .collect();
        let names = had.keys().chain(has.keys()).filter(|name| had.get(*name) != has.get(*name));
        let expected = names.map(|name| (name.clone(), [had.get(name).cloned(), has.get(name).cloned()])).collect();
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn the_order_of_maps_and_of_files_changes_nothing(
        params in proptest::collection::btree_map("[a-z]{1,5}", any::<i32>(), 0..6),
        seed in any::<u64>(),
    ) {
        let forward: Map<String, Value> = params.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let backward: Map<String, Value> = params.iter().rev().map(|(k, v)| (k.clone(), json!(v))).collect();
        let mut shuffled = files();
        shuffled.rotate_left((seed % 3) as usize);
        let (one, two) = (recipe(Value::Object(forward)), recipe(Value::Object(backward)));
        prop_assert_eq!(KeyParts::new(&one, files()).key(), KeyParts::new(&two, shuffled).key());
    }

    #[test]
    fn swapping_the_roles_of_two_inputs_changes_the_key(a in "[a-z]{1,8}", b in "[a-z]{1,8}") {
        prop_assume!(a != b);
        let recipe = recipe(json!({}));
        let both = |x: &str, y: &str| vec![file("source", "output", &[], "f", x), file("target", "output", &[], "f", y)];
        prop_assert_ne!(KeyParts::new(&recipe, both(&a, &b)).key(), KeyParts::new(&recipe, both(&b, &a)).key());
    }

    #[test]
    fn a_key_survives_the_way_into_a_record_and_back(a in any::<i64>(), b in any::<f64>().prop_filter("numbers", |x| x.is_finite())) {
        let recipe = recipe(json!({"a": a, "b": b}));
        let parts = KeyParts::new(&recipe, files());
        let read: KeyParts = serde_json::from_str(&serde_json::to_string(&parts).unwrap()).unwrap();
        prop_assert_eq!(read.key(), parts.key());
    }
}
