//! Where clusters come from, and the set of them that is in force.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use async_trait::async_trait;

use crate::{ClusterDetails, Error, ErrorKind, Problem, Result};

/// A place where clusters are listed.
#[async_trait]
pub trait ClusterLocator: fmt::Debug + Send + Sync + 'static {
    /// The wire name of the locator, `config`.
    fn name(&self) -> &str;

    /// The clusters listed there now, and every problem found on the way; one bad cluster hides no good one.
    ///
    /// # Errors
    /// If the place itself cannot be read.
    async fn locate(&self) -> Result<Located>;
}

/// What a locator found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Located {
    /// The clusters that can be used, in the order of the source.
    pub clusters: Vec<ClusterDetails>,
    /// What is wrong with the others.
    pub problems: Vec<Problem>,
    /// What works and should be looked at.
    pub warnings: Vec<String>,
}

impl Located {
    /// What was found.
    pub fn new(clusters: Vec<ClusterDetails>, problems: Vec<Problem>) -> Self {
        Self {
            clusters,
            problems,
            warnings: Vec::new(),
        }
    }

    /// Adds warnings.
    pub fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }
}

/// Clusters in their order, found by name. Of two clusters with one name the first is found.
#[derive(Clone, Debug, Default)]
pub struct ClusterSet {
    clusters: Vec<ClusterDetails>,
    by_name: HashMap<Arc<str>, usize>,
}

impl ClusterSet {
    /// The set that follows this one: clusters whose content did not change keep their handle, hence their stamp,
    /// their cached credentials and their connections.
    pub fn next(&self, clusters: Vec<ClusterDetails>) -> Self {
        self.next_but(clusters, |_| false)
    }

    /// As [`ClusterSet::next`]; clusters that `renewed` holds for count as changed.
    fn next_but(&self, clusters: Vec<ClusterDetails>, renewed: impl Fn(&ClusterDetails) -> bool) -> Self {
        let mut next = Self::default();
        for cluster in clusters {
            let kept = self
                .find(cluster.name().as_str())
                .filter(|old| old.same_content(&cluster) && !renewed(&cluster))
                .cloned();
            let cluster = kept.unwrap_or(cluster);
            let index = next.clusters.len();
            next.by_name
                .entry(cluster.name().as_str().into())
                .or_insert(index);
            next.clusters.push(cluster);
        }
        next
    }

    /// The cluster of this name.
    ///
    /// # Errors
    /// `ClusterUnknown`, with Backstage's text.
    pub fn get(&self, name: &str) -> Result<&ClusterDetails> {
        self.find(name).ok_or_else(|| {
            let text = match self.clusters.is_empty() {
                true => "No Clusters configured".to_owned(),
                false => format!("Cluster '{}' not found", name.escape_debug()),
            };
            Error::new(ErrorKind::ClusterUnknown, text)
        })
    }

    /// All clusters in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &ClusterDetails> {
        self.clusters.iter()
    }

    fn find(&self, name: &str) -> Option<&ClusterDetails> {
        self.by_name.get(name).and_then(|index| self.clusters.get(*index))
    }
}

/// The clusters in force, swapped whole on a reload. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct Clusters(Arc<ArcSwap<ClusterSet>>);

impl Clusters {
    /// These clusters.
    pub fn new(clusters: Vec<ClusterDetails>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(
            ClusterSet::default().next(clusters),
        )))
    }

    /// The set in force at this moment.
    pub fn current(&self) -> Arc<ClusterSet> {
        self.0.load_full()
    }

    /// The cluster of this name in the set in force.
    ///
    /// # Errors
    /// `ClusterUnknown`.
    pub fn get(&self, name: &str) -> Result<ClusterDetails> {
        self.0.load().get(name).cloned()
    }

    /// Puts another set in force; unchanged clusters keep their handle. Two writers at once lose neither's turn. What is
    /// open to a cluster that went or changed ends after the grace of streams.
    pub fn replace(&self, clusters: &[ClusterDetails]) {
        self.replace_but(clusters, |_| false);
    }

    /// As [`Clusters::replace`]; clusters that `renewed` holds for count as changed: what stands behind them did, as the
    /// settings of their strategy. They must be others than those in force.
    pub fn replace_but(&self, clusters: &[ClusterDetails], renewed: impl Fn(&ClusterDetails) -> bool) {
        let before = self
            .0
            .rcu(|current| current.next_but(clusters.to_vec(), &renewed));
        let now = self.current();
        let stays = |old: &ClusterDetails| now.iter().any(|cluster| cluster.stamp() == old.stamp());
        for gone in before.iter().filter(|old| !stays(old)) {
            gone.retire();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str, server: &str) -> ClusterDetails {
        ClusterDetails::builder(name, server)
            .auth_provider("x")
            .build()
            .expect("a cluster")
    }

    #[test]
    fn reload_with_equal_content_keeps_the_stamp() {
        let clusters = Clusters::new(vec![cluster("a", "https://a"), cluster("b", "https://b")]);
        let (a, b) = (
            clusters.get("a").expect("a").stamp(),
            clusters.get("b").expect("b").stamp(),
        );

        clusters.replace(&[cluster("b", "https://other"), cluster("a", "https://a")]);

        assert_eq!(clusters.get("a").expect("a").stamp(), a);
        assert_ne!(clusters.get("b").expect("b").stamp(), b);
    }

    #[test]
    fn cluster_whose_strategy_changed_gets_another_stamp_although_its_content_did_not() {
        let clusters = Clusters::new(vec![cluster("a", "https://a"), cluster("b", "https://b")]);
        let stamps = || ["a", "b"].map(|name| clusters.get(name).expect("a cluster").stamp());
        let [a, b] = stamps();

        clusters.replace_but(
            &[cluster("a", "https://a"), cluster("b", "https://b")],
            |cluster| cluster.name().as_str() == "b",
        );

        assert_eq!(stamps()[0], a);
        assert_ne!(stamps()[1], b);
    }

    #[test]
    fn first_of_two_clusters_with_one_name_is_found() {
        let clusters = Clusters::new(vec![cluster("a", "https://one"), cluster("a", "https://two")]);

        assert_eq!(clusters.get("a").expect("a").server().host(), "one");
        assert_eq!(clusters.current().iter().len(), 2);
    }

    #[test]
    fn unknown_name_gives_the_peers_text() {
        let error = Clusters::new(vec![cluster("a", "https://a")])
            .get("x\n")
            .expect_err("unknown");

        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::ClusterUnknown, "Cluster 'x\\n' not found")
        );
    }
}
