//! Where the attributes of samples come from.

use regex::Regex;

use super::Checker;
use crate::manifest::Attribute;

impl Checker<'_> {
    /// Expressions that cannot be read, and columns of tables that are not named.
    pub(super) fn sites(&mut self) {
        for (name, site) in &self.loaded.manifest.sites {
            for (what, from) in [("class", &site.class), ("patient", &site.patient), ("prompt", &site.prompt)] {
                let place = ["sites", name, what];
                match from {
                    Some(Attribute::Name(from)) => self.expression(&place, &from.name),
                    Some(Attribute::Column(_)) if site.table.is_none() => {
                        let message = format!("`{what}` is a column, but the site `{name}` names no table");
                        self.add(self.span(&place), message, Some("name it with `table: FILE.csv`".into()));
                    }
                    _ => {}
                }
            }
        }
    }

    fn expression(&mut self, place: &[&str], text: &str) {
        match Regex::new(text) {
            Ok(regex) if regex.captures_len() < 2 => {
                let hint = format!("what stands in brackets is taken; write `({text})` to take all of it");
                self.add(self.span(place), format!("`{text}` has no group"), Some(hint));
            }
            Ok(_) => {}
            Err(error) => {
                // It draws the expression with a caret in front of this.
                let all = error.to_string();
                let last = all.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.add(self.span(place), format!("`{text}` is no regular expression: {last}"), None);
            }
        }
    }
}
