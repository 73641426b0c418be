//! What stages and names of files say, made fit for terminals, logs and tables. What stages say is made so where it comes in, so
//! that nobody else need think of it; names are data, and made so where they are shown.

use serde::Serialize;

/// Control characters are shown by their escapes, line ends and tabs excepted.
pub fn printable(text: &str) -> String {
    escaped(text, |c| c == '\n' || c == '\t')
}

/// Control characters are shown by their escapes: for names, which stand in lines and tables of others.
pub fn on_one_line(text: &str) -> String {
    escaped(text, |_| false)
}

/// A value as JSON in which nothing steers a terminal, in one line or indented.
pub fn json(value: &impl Serialize, indented: bool) -> String {
    let text = if indented { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let text = text.expect("it can be written as JSON");
    if !text.chars().any(|c| steers(c) && c != '\n') {
        return text;
    }
    // Outside of texts JSON has no such characters, and inside of them every character may be written by its number.
    let number = |c: char| format!("\\u{:04x}", u32::from(c));
    text.chars().map(|c| if steers(c) && c != '\n' { number(c) } else { c.to_string() }).collect()
}

/// Control characters, and those that change the direction in which text is shown.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !keeps(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{9b}d"), "a\\u{1b}[2Jb\nc\\u{9b}d");
        assert_eq!(on_one_line("dice\nfake: 1"), "dice\\nfake: 1");
        assert_eq!(on_one_line("a\u{202e}gnp.exe"), "a\\u{202e}gnp.exe");
        let odd = vec!["a\u{9b}b\u{202e}c\nd\u{1b}"];
        let text = json(&odd, true);
        assert!(!text.chars().any(|c| steers(c) && c != '\n'), "{text:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), odd);
    }
}
