//! Values to unambiguous bytes, for keys.
//!
//! The format: a value is a tag byte, its length as eight bytes in little-endian order, and its payload. Lengths come
//! first, so no two different values share an encoding by running into each other.
//!
//! | tag | value | length | payload |
//! |---|---|---|---|
//! | `n` | null | 0 | none |
//! | `b` | boolean | 1 | 0 or 1 |
//! | `i` | whole number | its digits | decimal digits, `-` in front of negative ones |
//! | `f` | other number | 8 | IEEE 754 bits, little-endian |
//! | `s` | text | bytes | UTF-8 |
//! | `d` | digest | 32 | the raw digest |
//! | `l` | list | items | the items |
//! | `m` | map | entries | key (as text) and value, in the order of the keys' bytes |
//! | `r` | record type | bytes | UTF-8; first in a pre-image, so that two kinds of pre-image never collide |
//!
//! A number that is whole is always `i`, whether it was written `1` or `1.0`: both mean the same parameter.

use serde_json::Value;

use crate::Digest;

/// So much of a pre-image is kept before it is hashed: enough for the hash to take many blocks at once.
const KEPT: usize = 64 << 10;

/// Builds a pre-image and hashes it.
#[derive(Debug, Default)]
pub struct Canonical {
    bytes: Vec<u8>,
    /// What came before these bytes, where that is much.
    before: Option<Box<blake3::Hasher>>,
}

impl Canonical {
    /// A pre-image of the record type `kind`.
    pub fn new(kind: &str) -> Self {
        let mut canonical = Self::default();
        canonical.put(b'r', kind.as_bytes());
        canonical
    }

    fn head(&mut self, tag: u8, length: usize) {
        if self.bytes.len() >= KEPT {
            self.before.get_or_insert_default().update(&self.bytes);
            self.bytes.clear();
        }
        let mut head = [tag; 9];
        head[1..].copy_from_slice(&(length as u64).to_le_bytes());
        self.bytes.extend_from_slice(&head);
    }

    fn put(&mut self, tag: u8, payload: &[u8]) {
        self.head(tag, payload.len());
        self.bytes.extend_from_slice(payload);
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.put(b's', text.as_bytes());
        self
    }

    /// Adds a digest.
    pub fn digest(&mut self, digest: &Digest) -> &mut Self {
        self.put(b'd', digest.as_bytes());
        self
    }

    /// Opens a list of `items` values, to be added next.
    pub fn list(&mut self, items: usize) -> &mut Self {
        self.head(b'l', items);
        self
    }

    /// Adds a JSON value; maps are taken in the order of their keys.
    pub fn value(&mut self, value: &Value) -> &mut Self {
        match value {
            Value::Null => self.head(b'n', 0),
            Value::Bool(b) => self.put(b'b', &[u8::from(*b)]),
            Value::Number(number) => match whole(number) {
                Some(digits) => self.put(b'i', digits.as_bytes()),
                None => self.put(b'f', &number.as_f64().unwrap_or(f64::NAN).to_bits().to_le_bytes()),
            },
            Value::String(text) => self.put(b's', text.as_bytes()),
            Value::Array(items) => {
                self.head(b'l', items.len());
                for item in items {
                    self.value(item);
                }
            }
            Value::Object(map) => {
                self.head(b'm', map.len());
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
                for (key, value) in entries {
                    self.put(b's', key.as_bytes());
                    self.value(value);
                }
            }
        }
        self
    }

    /// The digest of everything added.
    pub fn finish(&self) -> Digest {
        match &self.before {
            None => Digest::of_bytes(&self.bytes),
            Some(before) => Digest::of_hasher(before.as_ref().clone().update(&self.bytes)),
        }
    }
}

/// The digits of a number without a fractional part.
fn whole(number: &serde_json::Number) -> Option<String> {
    if let Some(n) = number.as_i64() {
        return Some(n.to_string());
    }
    if let Some(n) = number.as_u64() {
        return Some(n.to_string());
    }
    let float = number.as_f64()?;
    /// Up to here every whole number has a float of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (float.fract() == 0.0 && float.abs() <= EXACT).then(|| format!("{}", float as i64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(value: &Value) -> Digest {
        Canonical::new("test").value(value).finish()
    }

    #[test]
    fn neighbours_do_not_run_into_each_other() {
        let pair = |a: &str, b: &str| Canonical::new("test").text(a).text(b).finish();
        assert_ne!(pair("ab", "cd"), pair("a", "bcd"));
        assert_ne!(digest(&json!([["a"], "b"])), digest(&json!([["a", "b"]])));
        assert_ne!(digest(&json!("1")), digest(&json!(1)));
        assert_ne!(digest(&json!(null)), digest(&json!(false)));
    }

    #[test]
    fn a_whole_number_is_the_same_however_it_is_written() {
        assert_eq!(digest(&json!(1)), digest(&json!(1.0)));
        assert_eq!(digest(&json!(-0.0)), digest(&json!(0)));
        assert_ne!(digest(&json!(1)), digest(&json!(1.5)));
    }

    /// One literal digest for each format version: whoever changes the format sees it here.
    #[test]
    fn the_format_is_pinned() {
        let value = json!({"b": [1, 2.5, "x", null, true], "a": {}});
        assert_eq!(digest(&value).to_string(), "ceddcc904867a35ba9f6a7eb36da956f1158f2fc7fe391bacdae6a6f7a94ba4a");
    }

    proptest! {
        #[test]
        fn order_of_a_map_changes_nothing(entries in proptest::collection::btree_map("[a-z]{1,6}", any::<i32>(), 0..8)) {
            let forward: serde_json::Map<_, _> = entries.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            let backward: serde_json::Map<_, _> = entries.iter().rev().map(|(k, v)| (k.clone(), json!(v))).collect();
            prop_assert_eq!(digest(&Value::Object(forward)), digest(&Value::Object(backward)));
        }

        #[test]
        fn different_texts_differ(a in ".{0,12}", b in ".{0,12}") {
            prop_assume!(a != b);
            prop_assert_ne!(digest(&json!(a)), digest(&json!(b)));
        }
    }
}
