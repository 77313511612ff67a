//! The workspace's crates and features, read from its manifests so that none is forgotten.

use std::{fs, path::Path};

use crate::shell::{Failure, Outcome};

/// One build of one crate with as little as possible.
#[derive(Debug, PartialEq)]
pub(crate) struct Build {
    pub(crate) package: String,
    /// `None` is the crate without any feature.
    pub(crate) feature: Option<String>,
}

/// Every library of the family without features, and with each feature alone.
pub(crate) fn builds(workspace: &Path) -> Outcome<Vec<Build>> {
    let mut builds = Vec::new();
    for package in members(&read(&workspace.join("Cargo.toml"))?) {
        let manifest = read(&workspace.join(&package).join("Cargo.toml"))?;
        let features = features(&manifest).into_iter().map(Some);
        builds.extend(std::iter::once(None).chain(features).map(|feature| Build {
            package: package.clone(),
            feature,
        }));
    }
    Ok(builds)
}

impl Build {
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "check",
            "--quiet",
            "--package",
            &self.package,
            "--no-default-features",
        ]
        .map(str::to_owned)
        .into();
        if let Some(feature) = &self.feature {
            arguments.extend(["--features".to_owned(), feature.clone()]);
            // Libraries leave the Kubernetes version to the program, and k8s-openapi doesn't build without one.
            if (self.package.as_str(), feature.as_str()) == ("kube-authn-core", "client") {
                arguments.extend(["--features".to_owned(), "k8s-openapi/latest".to_owned()]);
            }
        }
        arguments
    }
}

/// The members that are published: programs and tests around them have no features.
fn members(manifest: &str) -> Vec<String> {
    let list = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .unwrap_or_default();
    list.split('"')
        .filter(|name| name.starts_with("kube-authn"))
        .map(str::to_owned)
        .collect()
}

fn features(manifest: &str) -> Vec<String> {
    manifest
        .lines()
        .skip_while(|line| *line != "[features]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = ").map(|(name, _)| name))
        .filter(|name| !name.starts_with([' ', '#']) && *name != "default")
        .map(str::to_owned)
        .collect()
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error| Failure::Failed(format!("read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_the_keys_of_their_section_without_default() {
        let manifest = "[features]\ndefault = [\"cli\"]\n# a = b\none = [\n    \"x\",\n]\ncli = [\"dep:clap\"]\n\n[dependencies]\na = 1\n";

        assert_eq!(features(manifest), ["one", "cli"]);
    }

    #[test]
    fn members_are_the_published_crates_of_the_first_list() {
        let manifest =
            "members = [\n    \"kube-authn-core\",\n    \"e2e\",\n]\ndefault-members = [\"kube-authn\"]\n";

        assert_eq!(members(manifest), ["kube-authn-core"]);
    }

    #[test]
    fn this_workspace_has_crates_with_features() {
        let builds = builds(crate::shell::workspace()).unwrap();

        let upstream = Build {
            package: "kube-authn-core".into(),
            feature: Some("upstream".into()),
        };
        assert!(builds.contains(&upstream), "{builds:?}");
    }

    /// The packages of a library without features, itself included.
    fn packages(library: &str) -> Vec<String> {
        let output = std::process::Command::new(env!("CARGO"))
            .args([
                "tree",
                "--offline",
                "--locked",
                "--no-default-features",
                "--edges",
                "normal",
            ])
            .args(["--prefix", "none", "--format", "{p}", "--package", library])
            .current_dir(crate::shell::workspace())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let mut packages: Vec<_> = text
            .lines()
            .map(|line| line.trim_end_matches(" (*)").to_owned())
            .collect();
        packages.sort();
        packages.dedup();
        packages
    }

    /// With some room over what `docs/features.md` says.
    #[test]
    fn libraries_without_features_stay_small() {
        for (library, most) in [
            ("kube-authn-core", 72),
            ("kube-authn-providers", 80),
            ("kube-authn-store", 76),
            ("kube-authn-clusters", 104),
        ] {
            let packages = packages(library);

            assert!(packages.len() <= most, "{library}: {packages:#?}");
        }
    }

    #[test]
    fn core_without_features_speaks_no_network_protocol() {
        let packages = packages("kube-authn-core");

        for heavy in [
            "hyper",
            "rustls",
            "kube",
            "k8s-openapi",
            "sqlx",
            "axum",
            "aws-lc-sys",
        ] {
            let found = packages
                .iter()
                .find(|package| package.split(' ').next() == Some(heavy));
            assert_eq!(found, None);
        }
    }
}
