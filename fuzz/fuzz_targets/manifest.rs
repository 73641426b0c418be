//! A manifest as text: parsed, checked against its schema, read into its types, its conditions and patterns read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use siteline_pipeline::manifest::{self, Manifest};
use siteline_pipeline::pattern::{Condition, InstancePattern};
use siteline_pipeline::schema;
use siteline_pipeline::tree::Node;

fuzz_target!(|text: &str| {
    let _ = Condition::parse(text);
    let _ = InstancePattern::parse(text);
    let _ = manifest::duration(text);
    let _ = manifest::Override::parse(text);
    let Ok(tree) = Node::parse(text) else { return };
    let misfits = schema::check(&tree, text, &manifest::json_schema(), "the manifest");
    // Every place that is told lies in the text.
    assert!(misfits.iter().all(|misfit| misfit.span.end <= text.len() && text.is_char_boundary(misfit.span.start)));
    let read = serde_json::from_value::<Manifest>(tree.to_json());
    // What fits the schema can be read.
    assert!(!misfits.is_empty() || read.is_ok(), "{read:?}");
});
