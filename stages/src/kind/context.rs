//! What a running stage sees: its request, and a way to say how it fares.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use siteline_pipeline::protocol::{Reply, RunInput, RunRequest, RunSource};

use crate::error::{Result, StageError};
use crate::memo::Memo;
use crate::resume::Checkpoints;

/// What a running stage sees: its request, and a way to say how it fares.
pub struct Ctx<'a> {
    /// Parameters, inputs, sources, output directory.
    pub request: &'a RunRequest,
    say: &'a dyn Fn(Reply),
}

impl<'a> Ctx<'a> {
    /// For a request, with the function that takes the replies.
    pub fn new(request: &'a RunRequest, say: &'a dyn Fn(Reply)) -> Self {
        Self { request, say }
    }

    /// The parameters as the kind's own type.
    ///
    /// # Errors
    /// Parameters that do not fit; the driver has checked them against the schema, so this is a mismatch of versions.
    pub fn params<P: DeserializeOwned>(&self) -> Result<P> {
        serde_json::from_value(self.request.params.clone())
            .map_err(|e| StageError::Request(format!("parameters of `{}`: {e}", self.request.kind)))
    }

    /// All artifacts of one input, in key order.
    pub fn inputs(&self, name: &str) -> impl Iterator<Item = &'a RunInput> {
        let name = name.to_owned();
        self.request.inputs.iter().filter(move |input| input.name == name)
    }

    /// The one artifact of an input that is not gathered.
    ///
    /// # Errors
    /// None or several of that name.
    pub fn input(&self, name: &str) -> Result<&'a RunInput> {
        let mut all = self.inputs(name);
        match (all.next(), all.next()) {
            (Some(input), None) => Ok(input),
            _ => Err(StageError::Request(format!("`{name}` must be exactly one artifact"))),
        }
    }

    /// A file of an artifact.
    ///
    /// # Errors
    /// A file that the artifact does not have.
    pub fn file(input: &'a RunInput, name: &str) -> Result<&'a Path> {
        input
            .files
            .get(name)
            .map(PathBuf::as_path)
            .ok_or_else(|| StageError::Request(format!("input `{}` has no file `{name}`", input.name)))
    }

    /// A source by name.
    ///
    /// # Errors
    /// A source that the request lacks.
    pub fn source(&self, name: &str) -> Result<&'a RunSource> {
        self.request.sources.get(name).ok_or_else(|| StageError::Request(format!("source `{name}` is missing")))
    }

    /// The path of an output.
    pub fn output(&self, name: &str) -> PathBuf {
        self.request.output_dir.join(name)
    }

    /// Results of parts, kept across executions.
    pub fn memo(&self) -> Memo {
        Memo::new(self.request)
    }

    /// Where this very work may keep what it needs to go on after an interruption.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.request.resume_dir.clone())
    }

    /// Says how far the work is.
    pub fn progress(&self, done: usize, total: usize, unit: &str) {
        (self.say)(Reply::Progress { done: done as u64, total: total as u64, unit: unit.to_owned() });
    }

    /// Keeps a number with the execution.
    pub fn metric(&self, name: &str, value: f64) {
        (self.say)(Reply::Metric { name: name.to_owned(), value });
    }

    /// A line for the log.
    pub fn log(&self, text: impl Into<String>) {
        (self.say)(Reply::Log { warning: false, text: text.into() });
    }

    /// A line that the user should see.
    pub fn warn(&self, text: impl Into<String>) {
        (self.say)(Reply::Log { warning: true, text: text.into() });
    }
}
