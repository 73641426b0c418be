//! What stages say, made fit for terminals, logs and tables: it is made so where it comes in, so that nobody else need think of it.

/// Control characters are shown by their escapes, line ends and tabs excepted.
pub fn printable(text: &str) -> String {
    escaped(text, |c| c == '\n' || c == '\t')
}

/// Control characters are shown by their escapes: for names, which stand in lines and tables of others.
pub fn on_one_line(text: &str) -> String {
    escaped(text, |_| false)
}

fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !keeps(c) {
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
    }
}
