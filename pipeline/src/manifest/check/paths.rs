//! Where files lie.

use std::path::Path;

use super::Checker;
use crate::source::climbs_out;

impl Checker<'_> {
    /// Paths that lead out of the project. Those with variables in them are looked at when the variables have values.
    pub(super) fn paths(&mut self) {
        let manifest = &self.loaded.manifest;
        let mut paths: Vec<([&str; 3], Option<String>, &str)> = Vec::new();
        for (name, site) in &manifest.sites {
            let table = site.table.as_deref().map(|table| ("table", table));
            let of_site = [("images", site.images.as_str()), ("masks", site.masks.as_str())].into_iter().chain(table);
            paths.extend(of_site.map(|(what, text)| (["sites", name, what], None, text)));
        }
        paths.extend(
            manifest.backbones.iter().map(|(name, b)| (["backbones", name, "weights"], None, b.weights.as_str())),
        );
        for (name, stage) in &manifest.stages {
            for (what, list) in [("code", &stage.code), ("files", &stage.files)] {
                let each = list.iter().enumerate();
                paths.extend(each.map(|(at, text)| (["stages", name, what], Some(at.to_string()), text.as_str())));
            }
        }
        for (place, index, text) in paths.into_iter().filter(|(_, _, text)| !text.contains("${")) {
            if let Some((message, hint)) = climbs_out(Path::new(text), &self.loaded.root) {
                let place: Vec<&str> = place.into_iter().chain(index.as_deref()).collect();
                self.add(self.span(&place), message, Some(hint));
            }
        }
    }
}
