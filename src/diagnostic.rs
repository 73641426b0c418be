//! Errors to text: the one place that renders them and decides exit codes.
//!
//! A message with its place, the offending line underlined, and at most one hint. Literals stand in backticks, so that all is
//! readable without colour.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::StoreError;
use siteline_pipeline::diagnostic::{Diagnostic, Diagnostics};
use siteline_pipeline::pack::PackError;
use siteline_pipeline::printable::{on_one_line, printable};
use siteline_pipeline::run::RunError;

/// Everything that ends a command early.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The manifest or its data are wrong.
    #[error(transparent)]
    Manifest(#[from] Diagnostics),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stage kinds are not known.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// What was asked for does not exist or makes no sense.
    #[error("{message}")]
    Request {
        /// What is wrong.
        message: String,
        /// What would mend it.
        hint: Option<String>,
    },
    /// What was asked for was refused or failed.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// What would mend it.
        hint: Option<String>,
    },
    /// A file of the user's cannot be written or read.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl CommandError {
    /// A wrong request.
    pub fn request(message: impl Into<String>, hint: impl Into<Option<String>>) -> Self {
        Self::Request { message: message.into(), hint: hint.into() }
    }

    /// A refusal.
    pub fn refused(message: impl Into<String>, hint: impl Into<Option<String>>) -> Self {
        Self::Refused { message: message.into(), hint: hint.into() }
    }

    /// A file that cannot be used.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Request { hint, .. } | Self::Refused { hint, .. } => hint.clone(),
            Self::Pack(PackError::Missing { .. }) => {
                Some("build it with `make build`, or name it with `--worker FILE`".into())
            }
            Self::Pack(PackError::Silent { reason, .. }) if reason.contains("shared libraries") => {
                Some("libtorch is not where the worker was built against: run `make setup`".into())
            }
            Self::Pack(PackError::Version { .. }) => Some("build both from the same sources: `make build`".into()),
            Self::Store(StoreError::Damaged { .. }) => Some(
                "run again: `siteline run` sets it aside and makes it anew; `siteline verify` looks at all others"
                    .into(),
            ),
            Self::Store(StoreError::InUse { .. }) => Some("wait until the run has ended".into()),
            Self::Store(StoreError::Io { source, .. }) | Self::File { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => Some("the disk is full; `siteline gc` shows what could go".into()),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    Some("the folder cannot be written; name another store with `--store DIR`".into())
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Manifest(_) | Self::Request { .. } => 2,
            _ => 1,
        }
    }
}

impl From<RunError> for CommandError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Plan(diagnostics) => Self::Manifest(diagnostics),
            RunError::Store(store) => Self::Store(store),
        }
    }
}

/// What is wrong with a manifest, for programs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Remark {
    /// `error` or `warning`.
    severity: &'static str,
    /// The file, relative to the working directory where it lies below.
    file: String,
    /// The line in it, from 1; nothing where no single place is meant.
    line: Option<usize>,
    /// The character in the line, from 1.
    column: Option<usize>,
    /// What is wrong.
    message: String,
    /// What would probably mend it.
    hint: Option<String>,
}

impl Remark {
    /// What must be mended.
    pub fn error(diagnostic: &Diagnostic) -> Self {
        Self::of(diagnostic, "error")
    }

    /// What may be meant.
    pub fn warning(diagnostic: &Diagnostic) -> Self {
        Self::of(diagnostic, "warning")
    }

    fn of(diagnostic: &Diagnostic, severity: &'static str) -> Self {
        let text = std::fs::read_to_string(&diagnostic.file).unwrap_or_default();
        let before = diagnostic.span.as_ref().and_then(|span| text.get(..span.start));
        let place = before.map(|before| {
            let line = before.rsplit('\n').next().unwrap_or_default();
            (before.matches('\n').count() + 1, line.chars().count() + 1)
        });
        Self {
            severity,
            file: shorten(&diagnostic.file),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            message: [Some(diagnostic.message.as_str()), diagnostic.detail.as_deref()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("\n"),
            hint: diagnostic.hint.clone(),
        }
    }
}

/// Shows an error on standard error and returns the exit code.
pub fn show(error: &CommandError) -> ExitCode {
    let renderer = renderer();
    match error {
        CommandError::Manifest(all) => {
            for diagnostic in &all.list {
                errln!("{}\n", excerpt(diagnostic, &renderer, Level::ERROR));
            }
            if all.list.len() > 1 {
                errln!("{} errors", all.list.len());
            }
        }
        other => {
            let said = other.to_string();
            // A program that ends may say why in many lines.
            let message = if matches!(other, CommandError::Pack(_)) { printable(&said) } else { on_one_line(&said) };
            errln!("{}", renderer.render(&[Group::with_title(Level::ERROR.primary_title(message))]));
            if let Some(hint) = other.hint() {
                errln!("hint: {}", printable(&hint));
            }
        }
    }
    ExitCode::from(error.code())
}

/// Shows warnings on standard error.
pub fn warn(warnings: &[Diagnostic]) {
    let renderer = renderer();
    for warning in warnings {
        errln!("{}\n", excerpt(warning, &renderer, Level::WARNING));
    }
}

fn renderer() -> Renderer {
    match std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => Renderer::styled(),
        false => Renderer::plain(),
    }
}

/// One diagnostic with its place, the line, and a mark under the offending text.
fn excerpt(diagnostic: &Diagnostic, renderer: &Renderer, level: Level<'static>) -> String {
    let path = shorten(&diagnostic.file);
    let text = std::fs::read_to_string(&diagnostic.file).unwrap_or_default();
    let title = level.primary_title(on_one_line(&diagnostic.message));
    let group = match &diagnostic.span {
        Some(span)
            if span.end <= text.len() && text.is_char_boundary(span.start) && text.is_char_boundary(span.end) =>
        {
            let annotation = AnnotationKind::Primary.span(span.clone());
            title.element(Snippet::source(&text).path(&path).annotation(annotation))
        }
        _ => Group::with_title(title),
    };
    let mut shown = renderer.render(&[group]);
    if let Some(detail) = &diagnostic.detail {
        shown.push_str(&format!("\n{}", printable(detail)));
    }
    if let Some(hint) = &diagnostic.hint {
        shown.push_str(&format!("\nhint: {}", printable(hint)));
    }
    shown
}

/// A path relative to where the user stands, if it lies below.
fn shorten(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
