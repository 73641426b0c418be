//! Conditions over axes (`where`, `when`) and instance patterns (`train[method=mcdrl,held_out=*]`).

use std::fmt;

use crate::protocol::Point;

/// A condition: comparisons of axes with axes or values, joined by `and`, `or`, `not` and brackets.
///
/// `site != held_out`, `method == mcdrl`, `method in [erm, mcdrl] and not seed == 0`, `site not in left_out`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Left and right are equal.
    Equal(Term, Term),
    /// Left is one of the right ones.
    In(Term, Vec<Term>),
    /// Left is one of those that the right axis's value joins: `A` is in `A+B`.
    Within(Term, Term),
    /// Not so.
    Not(Box<Condition>),
    /// All hold.
    And(Vec<Condition>),
    /// At least one holds.
    Or(Vec<Condition>),
}

/// What stands between the names that one value of an axis joins.
pub const JOINS: char = '+';

/// A word of a condition and where it stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The word: an axis's name, or a value.
    pub word: String,
    /// Offset in the condition's text, in bytes.
    pub at: usize,
}

/// What is wrong with a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadCondition {
    /// In words.
    pub message: String,
    /// Offset in the text.
    pub at: usize,
    /// Length of the offending text.
    pub length: usize,
}

impl Condition {
    /// Reads a condition.
    ///
    /// # Errors
    /// A text that is no condition, with the place where it stops being one.
    pub fn parse(text: &str) -> Result<Self, BadCondition> {
        let mut parser = Parser { tokens: tokens(text), next: 0, end: text.len(), depth: 0 };
        let condition = parser.any()?;
        match parser.peek() {
            None => Ok(condition),
            Some(token) => Err(bad(&format!("`{}` does not belong here", token.word), token)),
        }
    }

    /// Whether it holds; `value` gives the label of an axis.
    pub fn holds<'v>(&'v self, value: &impl Fn(&str) -> Option<&'v str>) -> bool {
        let of = |term: &'v Term| value(&term.word).unwrap_or(&term.word);
        match self {
            Self::Equal(left, right) => of(left) == of(right),
            Self::In(left, list) => list.iter().any(|right| of(left) == of(right)),
            Self::Within(left, set) => of(set).split(JOINS).any(|member| of(left) == member),
            Self::Not(inner) => !inner.holds(value),
            Self::And(parts) => parts.iter().all(|part| part.holds(value)),
            Self::Or(parts) => parts.iter().any(|part| part.holds(value)),
        }
    }

    /// Equalities without which it cannot hold: `a == b` alone or joined by `and`.
    pub fn equalities(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Equal(left, right) => vec![(&left.word, &right.word)],
            Self::And(parts) => parts.iter().flat_map(Self::equalities).collect(),
            _ => Vec::new(),
        }
    }

    /// Every word, with the words that it is compared with.
    pub fn comparisons(&self) -> Vec<(&Term, &Term)> {
        match self {
            Self::Equal(left, right) | Self::Within(left, right) => vec![(left, right)],
            Self::In(left, list) => list.iter().map(|right| (left, right)).collect(),
            Self::Not(inner) => inner.comparisons(),
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::comparisons).collect(),
        }
    }
}

struct Token {
    word: String,
    at: usize,
}

fn bad(message: &str, token: &Token) -> BadCondition {
    BadCondition { message: message.to_owned(), at: token.at, length: token.word.len() }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        let mut word = String::from(c);
        let mark = "=!()[],".contains(c);
        let quote = c == '\'' || c == '"';
        while let Some((_, next)) = chars.peek().copied() {
            let goes_on = if quote {
                true
            } else if mark {
                matches!((c, next), ('=' | '!', '='))
            } else {
                !next.is_whitespace() && !"=!()[],".contains(next)
            };
            if !goes_on {
                break;
            }
            word.push(next);
            chars.next();
            if (quote && next == c) || (mark && word.len() == 2) {
                break;
            }
        }
        tokens.push(Token { word, at });
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.peek().is_some_and(|token| token.word == word);
        self.next += usize::from(found);
        found
    }

    /// Goes one deeper, behind the token that was taken.
    fn descend(&mut self) -> Result<(), BadCondition> {
        const DEEPEST: usize = 100;
        self.depth += 1;
        match self.tokens.get(self.next.saturating_sub(1)) {
            Some(token) if self.depth > DEEPEST => Err(bad(&format!("this is nested more than {DEEPEST} deep"), token)),
            _ => Ok(()),
        }
    }

    fn stops(&self, wanted: &str) -> BadCondition {
        match self.peek() {
            Some(token) => bad(&format!("expected {wanted}, found `{}`", token.word), token),
            None => BadCondition { message: format!("expected {wanted} at the end"), at: self.end, length: 0 },
        }
    }

    fn any(&mut self) -> Result<Condition, BadCondition> {
        let mut parts = vec![self.all()?];
        while self.take("or") {
            parts.push(self.all()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::Or(parts) })
    }

    fn all(&mut self) -> Result<Condition, BadCondition> {
        let mut parts = vec![self.one()?];
        while self.take("and") {
            parts.push(self.one()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::And(parts) })
    }

    fn one(&mut self) -> Result<Condition, BadCondition> {
        if self.take("not") {
            self.descend()?;
            let inner = self.one()?;
            self.depth -= 1;
            return Ok(Condition::Not(Box::new(inner)));
        }
        if self.take("(") {
            self.descend()?;
            let inner = self.any()?;
            self.depth -= 1;
            return if self.take(")") { Ok(inner) } else { Err(self.stops("`)`")) };
        }
        let left = self.term()?;
        if self.take("==") {
            return Ok(Condition::Equal(left, self.term()?));
        }
        if self.take("!=") {
            return Ok(Condition::Not(Box::new(Condition::Equal(left, self.term()?))));
        }
        if self.take("in") {
            return self.among(left);
        }
        if self.take("not") {
            return match self.take("in") {
                true => Ok(Condition::Not(Box::new(self.among(left)?))),
                false => Err(self.stops("`in`")),
            };
        }
        Err(self.stops("`==`, `!=` or `in`"))
    }

    /// What follows on `in`: a list of words, or an axis.
    fn among(&mut self, left: Term) -> Result<Condition, BadCondition> {
        if !self.take("[") {
            return Ok(Condition::Within(left, self.term()?));
        }
        let mut list = vec![self.term()?];
        while self.take(",") {
            list.push(self.term()?);
        }
        if self.take("]") { Ok(Condition::In(left, list)) } else { Err(self.stops("`]`")) }
    }

    fn term(&mut self) -> Result<Term, BadCondition> {
        match self.peek() {
            Some(token)
                if !["=", "==", "!", "!=", "(", ")", "[", "]", ",", "and", "or", "not", "in"]
                    .contains(&token.word.as_str()) =>
            {
                let word = token.word.trim_matches(|c| c == '\'' || c == '"').to_owned();
                let term = Term { word, at: token.at };
                self.next += 1;
                Ok(term)
            }
            _ => Err(self.stops("an axis or a value")),
        }
    }
}

/// Instances by stage and axis values: `train[method=mcdrl,held_out=*]`. A stage alone means all its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePattern {
    /// The stage; `*` is any.
    pub stage: String,
    /// Axis to value; a value may hold `*`.
    pub axes: Vec<(String, String)>,
}

impl InstancePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// A text that is no pattern, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((stage, rest)) = text.split_once('[') else {
            return Ok(Self { stage: text.to_owned(), axes: Vec::new() });
        };
        let (inner, behind) = rest.split_once(']').ok_or_else(|| format!("`{text}` lacks a closing bracket"))?;
        if !behind.is_empty() {
            return Err(format!("`{behind}` does not belong behind the bracket of `{text}`"));
        }
        let axes: Vec<(String, String)> = inner
            .split(',')
            .filter(|part| !part.trim().is_empty())
            .map(|part| {
                let (axis, value) =
                    part.split_once('=').ok_or_else(|| format!("`{}` is not AXIS=VALUE", part.trim()))?;
                Ok((axis.trim().to_owned(), value.trim().to_owned()))
            })
            .collect::<Result<_, String>>()?;
        for (place, (axis, value)) in axes.iter().enumerate() {
            match axes[..place].iter().find(|(before, _)| before == axis) {
                Some((_, other)) if other == value => return Err(format!("`{axis}={value}` is there twice")),
                Some((_, other)) => {
                    let two = format!("one with `{axis}={other}` and one with `{axis}={value}`");
                    return Err(format!("no instance has two values of `{axis}`; give two patterns, {two}"));
                }
                None => {}
            }
        }
        Ok(Self { stage: stage.trim().to_owned(), axes })
    }

    /// Whether an instance fits.
    pub fn fits(&self, stage: &str, point: &Point) -> bool {
        like(&self.stage, stage)
            && self.axes.iter().all(|(axis, wanted)| point.get(axis).is_some_and(|value| like(wanted, value)))
    }

    /// Whether the instance of this name fits, also one that is no part of the sweep any more.
    pub fn fits_name(&self, name: &str) -> bool {
        // A name is a pattern that spells out every axis.
        let Ok(Self { stage, axes }) = Self::parse(name) else { return false };
        self.fits(&stage, &axes.into_iter().collect())
    }
}

impl fmt::Display for InstancePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<_> = self.axes.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
        if axes.is_empty() { f.write_str(&self.stage) } else { write!(f, "{}[{}]", self.stage, axes.join(",")) }
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for anything.
fn like(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let (head, tail) = (pieces.next().unwrap_or_default(), pieces.next_back());
    let Some(tail) = tail else { return pattern == text };
    let Some(mut rest) = text.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)) else { return false };
    // The first place that fits a piece leaves the most to the next.
    pieces.all(|piece| rest.split_once(piece).map(|(_, behind)| rest = behind).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str) -> bool {
        let axes = |axis: &str| match axis {
            "site" => Some("A"),
            "held_out" => Some("B"),
            "seed" => Some("0"),
            "left_out" => Some("A+C"),
            _ => None,
        };
        let condition = Condition::parse(text).unwrap();
        condition.holds(&axes)
    }

    #[test]
    fn conditions_mean_what_they_say() {
        assert!(holds("site != held_out"));
        assert!(!holds("site == held_out"));
        assert!(holds("site==A and seed in [0, 1]"));
        assert!(holds("not (site == B or held_out == 'A')"));
        assert!(holds("site == B or seed == 0 and held_out == B"));
        assert!(holds("site in left_out and held_out not in left_out"));
        assert!(holds("seed not in [1, 2]"));
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, fits, misfits) in [
            ("*", vec!["", "abc"], vec![]),
            ("a*", vec!["a", "ab"], vec!["", "ba"]),
            ("a*a", vec!["aa", "aba"], vec!["a", "ab"]),
            ("*b*b*", vec!["bb", "abcbd"], vec!["b", "abc"]),
            ("a**c", vec!["ac", "abc"], vec!["a"]),
            ("é*", vec!["é", "éa"], vec!["e"]),
            ("abc", vec!["abc"], vec!["ab", "abcd"]),
        ] {
            assert!(fits.iter().all(|text| like(pattern, text)), "{pattern}");
            assert!(!misfits.iter().any(|text| like(pattern, text)), "{pattern}");
        }
        assert!(!like(&format!("{}c", "a*".repeat(30)), &"a".repeat(5000)));
    }

    #[test]
    fn a_condition_without_end_is_refused() {
        for (deeper, end) in [("(", ")"), ("not ", "")] {
            let nested = |depth| format!("{}site == A{}", deeper.repeat(depth), end.repeat(depth));
            assert!(Condition::parse(&nested(100)).is_ok());
            let error = Condition::parse(&nested(100_000)).unwrap_err();
            assert!(error.message.contains("nested"), "{}", error.message);
        }
    }

    #[test]
    fn a_broken_condition_says_where() {
        let error = Condition::parse("site = held_out").unwrap_err();
        assert_eq!((error.at, error.length), (5, 1), "{}", error.message);
        assert_eq!(Condition::parse("site ==").unwrap_err().at, 7);
        assert_eq!(Condition::parse("a == b c").unwrap_err().message, "`c` does not belong here");
        assert!(Condition::parse("").is_err());
        assert_eq!(Condition::parse("a not b").unwrap_err().at, 6);
    }

    #[test]
    fn patterns_choose_instances() {
        let point = Point::from([("method".into(), "mcdrl".into()), ("seed".into(), "1".into())]);
        let fits = |text: &str| InstancePattern::parse(text).unwrap().fits("train", &point);
        assert!(fits("train") && fits("train[method=mcdrl]") && fits("*[seed=*]") && fits("train[method=mc*,seed=1]"));
        assert!(!fits("evaluate") && !fits("train[held_out=*]") && !fits("train[method=erm]"));
        assert!(InstancePattern::parse("train[method]").is_err());
    }
}
