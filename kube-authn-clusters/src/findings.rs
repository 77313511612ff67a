//! What was found while reading, so that everything is reported in one go.

use kube_authn_core::Problem;

/// Problems and warnings in the order in which they were found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
}

impl Findings {
    /// The value that was read; a problem in its place is kept.
    pub(crate) fn keep<T>(&mut self, read: Result<T, Problem>) -> Option<T> {
        read.map_err(|problem| self.push(problem)).ok()
    }

    /// Adds a problem, unless one at the same place is there: the first one names the cause.
    pub(crate) fn push(&mut self, problem: Problem) {
        let same = |known: &Problem| known.file == problem.file && known.key == problem.key;
        if !self.problems.iter().any(same) {
            self.problems.push(problem);
        }
    }

    pub(crate) fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        problems.into_iter().for_each(|problem| self.push(problem));
    }

    pub(crate) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }
}
