//! A YAML document as a tree in which every key and value knows its place.

use std::fmt;
use std::ops::Range;

use indexmap::IndexMap;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_yaml::Spanned;

/// Where something stands in a file, in bytes.
pub type Span = Range<usize>;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub value: NodeValue,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeValue {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order in which it is written.
    Map(IndexMap<String, Entry>),
}

/// One entry of a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Where the key stands.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

/// A document that is not well-formed.
#[derive(Debug)]
pub struct BadYaml {
    /// What is wrong.
    pub message: String,
    /// Where, if known.
    pub span: Option<Span>,
}

impl Node {
    /// The value as the text has it that it was read from, if it was: `3.10` is another text than the number's.
    pub fn written<'t>(&self, text: &'t str) -> Option<&'t str> {
        let written = text.get(self.span.clone())?;
        Self::parse(written).is_ok_and(|read| read.to_json() == self.to_json()).then_some(written)
    }

    /// Parses one document.
    ///
    /// # Errors
    /// A document that is not well-formed, repeats a key, or grows without bound by its aliases.
    pub fn parse(text: &str) -> Result<Self, BadYaml> {
        // As YAML 1.2 has it: `n`, `no` and `off` are words, such as an axis or a value may be called.
        let options = serde_yaml::options! { strict_booleans: true };
        let root: Spanned<Tree> = serde_yaml::from_str_with_options(text, options).map_err(|error| {
            let error = error.without_snippet();
            let span = error.location().map(|at| span_of(&at, text));
            let said = error.to_string();
            let message = match said.contains("non-finite float") {
                true => "a number must be finite".to_owned(),
                false => format!("this is not well-formed YAML: {}", strip_place(&said)),
            };
            BadYaml { message, span }
        })?;
        Raw(root).into_node(text)
    }

    /// The entry of a map.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            NodeValue::Map(entries) => entries.get(key),
            _ => None,
        }
    }

    /// The node at a path of keys and indices; where the path ends early, the last node on it.
    pub fn nearest<'a>(&'a self, path: &[&str]) -> &'a Node {
        let Some((first, rest)) = path.split_first() else { return self };
        let next = match &self.value {
            NodeValue::Map(_) => self.get(first).map(|entry| &entry.value),
            NodeValue::List(items) => first.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => None,
        };
        next.map_or(self, |node| node.nearest(rest))
    }

    /// Where the key at the end of a path stands; where the path ends early, the last value on it.
    pub fn key_span(&self, path: &[&str]) -> Span {
        let Some((last, parents)) = path.split_last() else { return self.span.clone() };
        let parent = self.nearest(parents);
        parent.get(last).map_or_else(|| parent.span.clone(), |entry| entry.key_span.clone())
    }

    /// The same as JSON, without places.
    pub fn to_json(&self) -> Value {
        match &self.value {
            NodeValue::Null => Value::Null,
            NodeValue::Bool(b) => Value::Bool(*b),
            NodeValue::Number(n) => Value::Number(n.clone()),
            NodeValue::Text(text) => Value::String(text.clone()),
            NodeValue::List(items) => items.iter().map(Node::to_json).collect(),
            NodeValue::Map(entries) => {
                Value::Object(entries.iter().map(|(key, entry)| (key.clone(), entry.value.to_json())).collect())
            }
        }
    }

    /// A word for what it is.
    pub fn what(&self) -> &'static str {
        match self.value {
            NodeValue::Null => "nothing",
            NodeValue::Bool(_) => "a boolean",
            NodeValue::Number(_) => "a number",
            NodeValue::Text(_) => "a text",
            NodeValue::List(_) => "a list",
            NodeValue::Map(_) => "a map",
        }
    }
}

/// `line 3 column 4: what` to `what`: the place is shown by whoever renders the error.
fn strip_place(message: &str) -> String {
    let mut rest = message.lines().next().unwrap_or(message);
    // The parser's advice is for programmers.
    for advice in ["set DuplicateKeyPolicy", "use from_str_multiple", "use Option<String>"] {
        rest = rest.find(advice).map_or(rest, |at| rest[..at].trim_end_matches([' ', ',', ';', '(']));
    }
    for word in ["error: ", "line "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let end = rest.find(" at line ").unwrap_or(rest.len());
    let (head, text) = rest[..end].split_once(": ").unwrap_or(("", &rest[..end]));
    let is_place =
        !head.is_empty() && head.split_whitespace().all(|w| w == "column" || w.bytes().all(|b| b.is_ascii_digit()));
    if is_place { text.to_owned() } else { rest[..end].to_owned() }
}

/// The bytes of the token at `at`. The parser knows where a token begins; it ends with its line, a comment or, for
/// a plain or quoted scalar, with itself.
fn span_of(at: &serde_yaml::Location, text: &str) -> Span {
    let known = at.span().byte_offset().and_then(|offset| usize::try_from(offset).ok());
    let start = known.filter(|start| text.is_char_boundary(*start)).unwrap_or_else(|| {
        let line = (at.line() as usize).saturating_sub(1);
        let start_of_line: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
        let rest = &text[start_of_line..];
        let column = (at.column() as usize).saturating_sub(1);
        start_of_line + rest.char_indices().nth(column).map_or_else(|| rest.len(), |(i, _)| i)
    });
    let token = text[start..].lines().next().unwrap_or("");
    start..start + token_length(token)
}

fn token_length(line: &str) -> usize {
    let quoted = |quote: char| line[1..].find(quote).map(|end| end + 2);
    match line.chars().next() {
        Some('"') => quoted('"').unwrap_or(line.len()),
        Some('\'') => quoted('\'').unwrap_or(line.len()),
        Some('{' | '[') => 1,
        Some(_) => {
            let stop = [": ", " #", ", ", "}", "]"].iter().filter_map(|mark| line.find(mark)).min();
            line[..stop.unwrap_or(line.len())].trim_end().trim_end_matches([':', ',']).len().max(1)
        }
        None => 0,
    }
}

/// The tree as the parser gives it, with places by line and column.
enum Tree {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

struct Raw(Spanned<Tree>);

impl Raw {
    /// # Errors
    /// Values that no later part could hold as they are written.
    fn into_node(self, text: &str) -> Result<Node, BadYaml> {
        let span = span_of(&self.0.referenced, text);
        let bad = |message: &str| BadYaml { message: message.to_owned(), span: Some(span.clone()) };
        let value = match self.0.value {
            Tree::Null => NodeValue::Null,
            Tree::Bool(b) => NodeValue::Bool(b),
            // The parser makes a fraction of what is larger than 64 bits, and so another number.
            Tree::Number(n) if is_beyond_64_bits(&n) && is_whole(&text[span.clone()]) => {
                return Err(bad("a whole number of more than 64 bits; in quotation marks it is a text"));
            }
            Tree::Number(n) => NodeValue::Number(n),
            Tree::Text(t) if t.contains('\0') => return Err(bad("a text with a NUL, which no command can be given")),
            Tree::Text(t) => NodeValue::Text(t),
            Tree::List(items) => {
                let items = items.into_iter().map(|item| Raw(item).into_node(text));
                NodeValue::List(items.collect::<Result<_, _>>()?)
            }
            Tree::Map(entries) => {
                let entries = entries.into_iter().map(|(key, value)| {
                    let key_span = span_of(&key.referenced, text);
                    Ok((key.value, Entry { key_span, value: Raw(value).into_node(text)? }))
                });
                NodeValue::Map(entries.collect::<Result<_, _>>()?)
            }
        };
        Ok(Node { span, value })
    }
}

fn is_beyond_64_bits(number: &Number) -> bool {
    number.is_f64() && number.as_f64().is_some_and(|value| value.abs() >= 2f64.powi(63))
}

/// Whether digits alone are written, with a sign at most.
fn is_whole(written: &str) -> bool {
    let digits = written.trim().trim_start_matches(['+', '-']);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }
    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
        Number::from_f64(value).map(Tree::Number).ok_or_else(|| E::custom("numbers must be finite"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut map: Vec<(Spanned<String>, Spanned<Tree>)> = Vec::new();
        let mut known = std::collections::HashSet::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            if !known.insert(key.value.clone()) {
                return Err(de::Error::custom(format!("the key `{}` stands here twice", key.value)));
            }
            map.push((key, entries.next_value()?));
        }
        Ok(Tree::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'a>(text: &'a str, span: &Span) -> &'a str {
        &text[span.clone()]
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let text = "a: 1\nb: {c: 'two', d: [x, 3.5]}   # comment\nlong:\n  - y: yes\n  - null\n";
        let root = Node::parse(text).unwrap();
        let b = root.get("b").unwrap();
        assert_eq!(at(text, &b.key_span), "b");
        let c = b.value.get("c").unwrap();
        assert_eq!((at(text, &c.key_span), at(text, &c.value.span)), ("c", "'two'"));
        assert_eq!(at(text, &root.nearest(&["b", "d", "1"]).span), "3.5");
        assert_eq!(at(text, &root.nearest(&["long", "0", "y"]).span), "yes");
        assert_eq!(
            root.to_json(),
            serde_json::json!({"a": 1, "b": {"c": "two", "d": ["x", 3.5]}, "long": [{"y": "yes"}, null]})
        );
    }

    #[test]
    fn broken_documents_say_where() {
        let text = "a: 1\nb: [1, 2\nc: 3\n";
        let error = Node::parse(text).unwrap_err();
        assert!(error.span.is_some(), "{error:?}");
        let twice = Node::parse("a: 1\na: 2\n").unwrap_err();
        assert_eq!(twice.span.map(|s| s.start), Some(5), "{}", twice.message);
    }
}
