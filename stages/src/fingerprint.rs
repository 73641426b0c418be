//! What each kind's code is, as worked out when this crate was built (see `build/fingerprint.rs`).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use siteline_pipeline::protocol::CodeFingerprint;

static ALL: LazyLock<BTreeMap<String, CodeFingerprint>> = LazyLock::new(|| {
    let text = include_str!(concat!(env!("OUT_DIR"), "/fingerprints.json"));
    serde_json::from_str(text).expect("the build script writes fingerprints")
});

/// The fingerprint of a kind's code.
pub fn of(kind: &str) -> CodeFingerprint {
    ALL.get(kind).cloned().expect("the build script knows every kind")
}
