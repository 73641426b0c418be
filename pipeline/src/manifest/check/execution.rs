//! What says how instances run: a command's declarations, times, resources.

use super::Checker;
use crate::diagnostic::suggest;
use crate::manifest::{CommandLine, Stage, duration};
use crate::protocol;

/// Variables by which a run finds its processes.
const OWN_VARIABLES: [&str; 2] = [crate::executor::processes::RUN_VARIABLE, crate::executor::orphans::JOB_VARIABLE];

impl Checker<'_> {
    /// All of it.
    pub(super) fn execution(&mut self, name: &str, stage: &Stage) {
        self.command(name, stage);
        self.outputs(name, stage);
        self.environment(name, stage);
        self.times(name, stage);
        self.resources(name, stage);
    }

    /// What only a command, or no command, declares.
    fn command(&mut self, name: &str, stage: &Stage) {
        let key = |entry: &str| self.loaded.tree.key_span(&["stages", name, entry]);
        if stage.run.is_some() {
            let nothing = match &stage.run {
                Some(CommandLine::Shell(text)) => text.trim().is_empty(),
                Some(CommandLine::Words(words)) => words.first().is_none_or(String::is_empty),
                None => false,
            };
            if nothing {
                let hint = "a line for the shell, or a list of a program and its arguments".to_owned();
                self.add(key("run"), format!("the command of the stage `{name}` is empty"), Some(hint));
            }
            if stage.outputs.is_empty() {
                let hint =
                    "name the files that the command writes: `outputs: [model.pt]`; one that ends in `/` is a folder";
                self.add(key("run"), format!("the stage `{name}` declares no `outputs`"), Some(hint.into()));
            }
        } else {
            let given = [
                ("outputs", !stage.outputs.is_empty()),
                ("results", !stage.results.is_empty()),
                ("code", !stage.code.is_empty()),
                ("files", !stage.files.is_empty()),
                ("env", !stage.env.is_empty()),
            ];
            for (entry, _) in given.into_iter().filter(|(_, given)| *given) {
                let hint = "a stage kind knows its own";
                self.add(key(entry), format!("`{entry}` is for stages that `run` a command"), Some(hint.into()));
            }
        }
    }

    fn outputs(&mut self, name: &str, stage: &Stage) {
        if stage.run.is_some() {
            for (index, path) in stage.results.iter().enumerate().filter(|(_, path)| !stage.outputs.contains(path)) {
                let span = self.span(&["stages", name, "results", &index.to_string()]);
                let hint = suggest(path, "its outputs are", stage.outputs.iter().map(String::as_str));
                self.add(span, format!("the stage `{name}` has no output `{path}`"), Some(hint));
            }
        }
        for (index, path) in stage.outputs.iter().enumerate() {
            let same = |other: &String| other.trim_end_matches('/') == path.trim_end_matches('/');
            if stage.outputs[..index].iter().any(same) {
                let span = self.span(&["stages", name, "outputs", &index.to_string()]);
                self.add(span, format!("the output `{path}` is there twice"), Some("leave out one of them".into()));
            } else if path.contains(['*', '?']) {
                let span = self.span(&["stages", name, "outputs", &index.to_string()]);
                let hint = "a name that ends in `/` is a folder with whatever is in it: `outputs: [plots/]`";
                self.add(span, format!("the output `{path}` is a pattern"), Some(hint.into()));
            }
            if path.contains("${") {
                let span = self.span(&["stages", name, "outputs", &index.to_string()]);
                let hint = "every instance has a directory of its own: call the output the same in all of them";
                self.add(span, format!("an output has a fixed name, `{path}` has not"), Some(hint.into()));
            }
            if !protocol::stays_inside(path) || path.starts_with("inputs/") {
                let span = self.span(&["stages", name, "outputs", &index.to_string()]);
                let hint = "outputs are relative to the command's own working directory, and not in `inputs/`";
                self.add(span, format!("{path:?} cannot be an output"), Some(hint.into()));
            }
        }
    }

    /// Names that the system cannot carry, or that hide a slip.
    fn environment(&mut self, name: &str, stage: &Stage) {
        let is_name =
            |text: &str| !text.is_empty() && !text.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control());
        for variable in stage.env.keys().filter(|variable| !is_name(variable)) {
            let span = self.loaded.tree.key_span(&["stages", name, "env", variable]);
            let hint = "a name has no spaces and no `=`; its value stands behind the colon".to_owned();
            self.add(span, format!("{variable:?} cannot be the name of a variable"), Some(hint));
        }
        for variable in stage.env.keys().filter(|variable| OWN_VARIABLES.contains(&variable.as_str())) {
            let span = self.loaded.tree.key_span(&["stages", name, "env", variable]);
            let hint = "a run knows its processes by it: call yours otherwise".to_owned();
            self.add(span, format!("`{variable}` is Siteline's own"), Some(hint));
        }
    }

    fn times(&mut self, name: &str, stage: &Stage) {
        let times = [
            (stage.timeout.as_ref(), vec!["stages", name, "timeout"]),
            (stage.retry.as_ref().map(|retry| &retry.backoff), vec!["stages", name, "retry", "backoff"]),
        ];
        for (text, place) in times {
            if let Some(Err(message)) = text.map(|text| duration(text)) {
                self.add(self.span(&place), message, None);
            }
        }
        let is_none = |text: &String| duration(text).is_ok_and(|time| time.is_zero());
        if stage.timeout.as_ref().is_some_and(is_none) {
            let hint = "leave it out where there is no limit".to_owned();
            self.add(self.span(&["stages", name, "timeout"]), "`timeout` must be more than zero".into(), Some(hint));
        }
    }

    fn resources(&mut self, name: &str, stage: &Stage) {
        let Some(resources) = &stage.resources else { return };
        if let Some(Err(message)) = resources.memory.as_ref().map(|text| protocol::bytes(text)) {
            self.add(self.span(&["stages", name, "resources", "memory"]), message, None);
        }
        for (token, wanted) in &resources.tokens {
            let place = ["stages", name, "resources", "tokens", token];
            match self.loaded.manifest.tokens.get(token) {
                None => {
                    let known = self.loaded.manifest.tokens.keys().map(String::as_str);
                    let hint = suggest(token, "`tokens` has", known);
                    self.add(self.loaded.tree.key_span(&place), format!("there is no token `{token}`"), Some(hint));
                }
                Some(all) if wanted > all => {
                    self.add(self.span(&place), format!("there are only {all} of the token `{token}`"), None);
                }
                _ => {}
            }
        }
    }
}
