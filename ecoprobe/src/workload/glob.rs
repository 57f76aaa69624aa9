//! Patterns over cgroup paths, and which cgroups it takes to enter for their matches.

use std::path::Path;

use ::glob::{MatchOptions, Pattern, PatternError};

use super::shown::shown_path;

/// A pattern over paths.
#[derive(Debug)]
pub(super) struct Glob {
    pattern: Pattern,
    /// The pattern of each component, where that says which cgroups to enter: a pattern without a
    /// slash is about last components anywhere, and `**` goes down everywhere.
    components: Option<Vec<Pattern>>,
    /// The pattern is about last components.
    anywhere: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) matches: bool,
    /// There may be matches below.
    pub(super) enter: bool,
}

impl Verdict {
    /// Of two patterns together.
    pub(super) fn or(self, other: Self) -> Self {
        Self { matches: self.matches || other.matches, enter: self.enter || other.enter }
    }
}

impl Glob {
    /// `text` without a slash is about last components; else about paths from the root.
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        let anywhere = !text.contains('/');
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let pattern = Pattern::new(&parts.join("/"))?;
        let components = if anywhere || parts.contains(&"**") {
            None
        } else {
            Some(parts.into_iter().map(Pattern::new).collect::<Result<_, _>>()?)
        };
        Ok(Self { pattern, components, anywhere })
    }

    /// A path below the mount. Where it is not text, it may be matched as it is shown, or with any one
    /// character for what is no text.
    pub(super) fn test_path(&self, path: &Path) -> Verdict {
        let (shown, lossy) = (shown_path(path), path.to_string_lossy());
        let verdict = self.test(&shown);
        if shown == lossy { verdict } else { verdict.or(self.test(&lossy)) }
    }

    /// `path` is without leading slash.
    pub(super) fn test(&self, path: &str) -> Verdict {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        let Some(patterns) = &self.components else {
            let last = path.rsplit('/').next().unwrap_or(path);
            let text = if self.anywhere { last } else { path };
            return Verdict { matches: self.pattern.matches_with(text, options), enter: true };
        };
        let depth = path.split('/').count();
        let fits = depth <= patterns.len()
            && patterns
                .iter()
                .zip(path.split('/'))
                .all(|(one, part)| one.matches_with(part, options));
        Verdict { matches: fits && depth == patterns.len(), enter: fits && depth < patterns.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, matches: bool, enter: bool) {
        assert_eq!(Glob::parse(pattern).unwrap().test(path), Verdict { matches, enter });
    }

    #[test]
    fn a_star_stays_within_its_component() {
        check("batch/*", "batch", false, true);
        check("batch/*", "batch/job", true, false);
        check("/batch/*/", "batch/job", true, false);
        check("batch/*", "batch/job/step", false, false);
        check("batch/*", "other", false, false);
        check("*/job_[0-9]?", "a/job_12", true, false);
        check("/*", "a", true, false);
        check("/*", "a/b", false, false);
    }

    #[test]
    fn without_a_slash_it_is_about_last_components() {
        check("job_*", "a/b/job_1", true, true);
        check("job_*", "job_1/a", false, true);
    }

    #[test]
    fn two_stars_go_down() {
        check("a/**/c", "a/b/b/c", true, true);
        check("a/**/c", "a/b", false, true);
        check("a/**", "a/b/b", true, true);
        check("a/**", "b", false, true);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Glob::parse("a[").is_err());
        assert!(Glob::parse("a/**b").is_err());
    }
}
