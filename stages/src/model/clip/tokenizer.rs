//! CLIP's byte-pair encoding, by the `instant-clip-tokenizer` crate, and vocabularies that hold a part of it.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;

use crate::error::{Result, StageError};

/// Id of the start token.
pub const START: i64 = 49_406;
/// Id of the end token.
pub const END: i64 = 49_407;

/// Texts to rows of a token table.
pub struct Tokenizer {
    bpe: instant_clip_tokenizer::Tokenizer,
    /// Id to row, where the table holds only some of the 49,408 tokens.
    rows: Option<HashMap<i64, i64>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("tokens", &self.rows.as_ref().map_or(49_408, HashMap::len)).finish()
    }
}

impl Tokenizer {
    /// For a table with all 49,408 rows.
    pub fn full() -> Self {
        Self { bpe: instant_clip_tokenizer::Tokenizer::new(), rows: None }
    }

    /// For a table whose row i holds token `ids[i]`.
    pub fn pruned(ids: &[i64]) -> Self {
        let rows = ids.iter().enumerate().map(|(row, id)| (*id, row as i64)).collect();
        Self { rows: Some(rows), ..Self::full() }
    }

    /// The token ids of a text, start and end included.
    pub fn ids(&self, text: &str) -> Vec<i64> {
        let mut tokens = vec![self.bpe.start_of_text()];
        // CLIP reads composed characters, straight quotation marks and what entities stand for (twice over), collapses spaces
        // and lower-cases; the crate's encoder does the last. The rest of what its authors' `ftfy` mends, text that was decoded
        // wrongly above all, is left as it is.
        let straight = |c: char| match c {
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
            '\u{201c}'..='\u{201f}' => '"',
            other => other,
        };
        // What looks like HTML keeps its entities until they are read for good.
        let read = if text.contains('<') { text.into() } else { html_escape::decode_html_entities(text) };
        let composed: String = read.nfc().map(straight).collect();
        let once = html_escape::decode_html_entities(&composed);
        let plain = html_escape::decode_html_entities(&once);
        let clean = plain.split_whitespace().collect::<Vec<_>>().join(" ");
        self.bpe.encode(&clean, &mut tokens);
        tokens.push(self.bpe.end_of_text());
        tokens.into_iter().map(|token| i64::from(token.to_u16())).collect()
    }

    /// Rows of the token table for a text, start and end included; `None` for a token without a row.
    ///
    /// # Errors
    /// A text with more than `context` tokens.
    pub fn encode(&self, text: &str, context: usize) -> Result<Vec<Option<i64>>> {
        let ids = self.ids(text);
        if ids.len() > context {
            return Err(StageError::Request(format!(
                "the prompt `{text}` has {} tokens; this CLIP reads {context}",
                ids.len()
            )));
        }
        Ok(ids.into_iter().map(|id| self.rows.as_ref().map_or(Some(id), |rows| rows.get(&id).copied())).collect())
    }

    /// As [`Tokenizer::encode`], but a text that is too long is cut, the end token in its last place.
    pub fn encode_cut(&self, text: &str, context: usize) -> Vec<Option<i64>> {
        let mut ids = self.ids(text);
        if ids.len() > context {
            ids.truncate(context);
            ids[context - 1] = END;
        }
        ids.into_iter().map(|id| self.rows.as_ref().map_or(Some(id), |rows| rows.get(&id).copied())).collect()
    }

    /// Words of `text` that the token table knows nothing of.
    pub fn unknown_words<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let Some(rows) = &self.rows else { return Vec::new() };
        let known = |word: &str| {
            let ids = self.ids(word);
            ids[1..ids.len() - 1].iter().all(|id| rows.contains_key(id))
        };
        text.split_whitespace().filter(|word| !known(word)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped prompts and harder texts, by open_clip's tokenizer (tests/golden/clip/make_tokens.py).
    #[test]
    fn ids_agree_with_the_reference_tokenizer() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/clip/tokens.json");
        let golden: std::collections::BTreeMap<String, Vec<i64>> =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let tokenizer = Tokenizer::full();
        assert!(golden.len() > 150);
        let differ: Vec<_> = golden
            .iter()
            .map(|(text, ids)| (text, tokenizer.ids(text), ids))
            .filter(|(_, found, ids)| found != *ids)
            .collect();
        assert!(differ.is_empty(), "{differ:#?}");
    }

    #[test]
    fn a_pruned_vocabulary_names_what_it_lacks() {
        let full = Tokenizer::full();
        let tokenizer = Tokenizer::pruned(&full.ids("a polyp"));
        let rows: Vec<_> = (0..5).map(Some).collect();
        assert_eq!(tokenizer.encode("a polyp", 77).unwrap(), rows, "start, a, two pieces of polyp, end");
        assert_eq!(tokenizer.encode("a cyst", 77).unwrap()[2], None);
        assert_eq!(tokenizer.unknown_words("a cyst polyp"), ["cyst"]);
    }

    #[test]
    fn a_prompt_that_is_too_long_is_refused() {
        assert!(Tokenizer::full().encode("polyp polyp polyp", 4).is_err());
    }
}
