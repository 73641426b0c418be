//! What is wrong with a manifest, and where. Rendering is the command line's.

use std::fmt;
use std::path::PathBuf;

use crate::tree::Span;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// The file.
    pub file: PathBuf,
    /// The offending text in it.
    pub span: Option<Span>,
    /// What is wrong, in one sentence. Names in it may hold anything: whoever shows it brings it into one line.
    pub message: String,
    /// What goes with it, in lines of its own, such as a path through the graph.
    pub detail: Option<String>,
    /// What would probably mend it.
    pub hint: Option<String>,
}

/// All that is wrong, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostics {
    /// At least one.
    pub list: Vec<Diagnostic>,
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.list.iter().map(|d| d.message.as_str()).collect();
        f.write_str(&texts.join("; "))
    }
}

impl std::error::Error for Diagnostics {}

/// The known name that is most like `name`, if one is like it.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count().max(name.chars().count()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// `did you mean ...?`, or the list of what there is.
pub fn suggest<'a>(name: &str, what: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    const MOST: usize = 50;
    let mut all: Vec<&str> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    all.extend(known.clone().into_iter().filter(|one| seen.insert(*one)));
    let shown: Vec<String> = all.iter().take(MOST).map(|one| format!("`{one}`")).collect();
    let list = match all.len() {
        0 => "there are none".to_owned(),
        count if count > MOST => format!("{} and {} more", shown.join(", "), count - MOST),
        _ => shown.join(", "),
    };
    match nearest(name, known) {
        Some(close) => format!("did you mean `{close}`? {what}: {list}"),
        None => format!("{what}: {list}"),
    }
}
