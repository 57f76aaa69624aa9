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
        let similarity = |form: &&str| {
            let (a, b) = (self.wanted.len() as f64, form.len() as f64);
            // Costs nothing, and spares most long paths the comparison.
            if a.min(b) < Self::ENOUGH * a.max(b) {
                return 0.0;
            }
            strsim::normalized_damerau_levenshtein(self.wanted, form)
        };
        let score = forms.iter().map(similarity).fold(0.0, f64::max);
        if score >= Self::ENOUGH {
            self.best.push((score, name()));
            self.best.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
            self.best.dedup_by(|a, b| a.1 == b.1);
            self.best.truncate(Self::KEPT);
        }
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
}
