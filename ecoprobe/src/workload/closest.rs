//! What somebody may have meant.

/// The best few candidates so far.
#[derive(Debug)]
pub(super) struct Closest<'a> {
    wanted: &'a str,
    best: Vec<(f64, String)>,
}

impl<'a> Closest<'a> {
    const KEPT: usize = 3;
    /// As a share of the longer name: at most two letters in five are wrong.
    const ENOUGH: f64 = 0.6;

    pub(super) fn new(wanted: &'a str) -> Self {
        Self { wanted, best: Vec::new() }
    }

    /// A candidate called `name`, which answers to any of `forms`.
    pub(super) fn offer(&mut self, forms: &[&str], name: impl FnOnce() -> String) {
        let similarity = |form: &&str| self.as_a_part(form).max(self.as_a_whole(form));
        let score = forms.iter().map(similarity).fold(0.0, f64::max);
        if score >= Self::ENOUGH {
            self.best.push((score, name()));
            self.best.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
            self.best.dedup_by(|a, b| a.1 == b.1);
            self.best.truncate(Self::KEPT);
        }
    }

    fn as_a_whole(&self, form: &str) -> f64 {
        let (a, b) = (self.wanted.len() as f64, form.len() as f64);
        // Costs nothing, and spares most long paths the comparison.
        if a.min(b) < Self::ENOUGH * a.max(b) {
            return 0.0;
        }
        strsim::normalized_damerau_levenshtein(self.wanted, form)
    }

    /// Names with something before and behind (`machine-qemu-1-web.scope`) are known by a part. What
    /// lies somewhere below a cgroup so called is not meant: a part of a path is none of its name.
    fn as_a_part(&self, form: &str) -> f64 {
        /// A letter or two are part of everything, but as a word.
        const LETTERS: usize = 3;
        let (wanted, same_kind) = (self.wanted, self.wanted.contains('/') == form.contains('/'));
        if wanted.is_empty() || wanted.len() > form.len() || !same_kind {
            return 0.0;
        }
        let form = form.to_ascii_lowercase();
        let wanted = wanted.to_ascii_lowercase();
        let is_end = |text: Option<char>| !text.is_some_and(char::is_alphanumeric);
        let is_part = form.match_indices(&wanted).any(|(at, _)| {
            let (before, behind) = (&form[..at], &form[at + wanted.len()..]);
            let is_word = is_end(before.chars().next_back()) && is_end(behind.chars().next());
            wanted.len() >= LETTERS || (is_word && wanted.len() > 1)
        });
        // The more of the name it is the better, and never better than one with a letter wrong.
        let share = wanted.len() as f64 / form.len() as f64;
        if is_part { Self::ENOUGH + (0.8 - Self::ENOUGH) * share } else { 0.0 }
    }

    /// Best first.
    pub(super) fn names(self) -> Vec<String> {
        self.best.into_iter().map(|(_, name)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_come_first_and_strangers_not_at_all() {
        let mut closest = Closest::new("jbo123");
        for name in ["job1234", "job123", "nginx", "job123", "jbo12", "j", ""] {
            closest.offer(&[name, "system.slice/whatever"], || name.to_owned());
        }
        assert_eq!(closest.names(), ["jbo12", "job123", "job1234"]);
    }

    #[test]
    fn a_part_of_a_name_is_enough() {
        let names = |wanted: &str| {
            let mut closest = Closest::new(wanted);
            for name in ["machine-qemu-1-web.scope", "lxc.payload.db", "a/lxc.payload.db/init"] {
                closest.offer(&[name], || name.to_owned());
            }
            closest.names()
        };
        assert_eq!(names("web"), ["machine-qemu-1-web.scope"]);
        assert_eq!(names("Web"), ["machine-qemu-1-web.scope"]);
        assert_eq!(names("db"), ["lxc.payload.db"]);
        assert_eq!(names("lxc.payload"), ["lxc.payload.db"]);
        for other in ["b", "eb", "we", "webs", "-", ""] {
            assert_eq!(names(other), [""; 0], "{other}");
        }
    }
}
