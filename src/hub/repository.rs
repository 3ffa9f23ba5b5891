//! A repository of the Hub, as typed: `hub:ORG/NAME[@REV][/FOLDER]`, `hub:datasets/ORG/NAME[@REV][:CONFIG]`.

use std::fmt;
use std::path::{Path, PathBuf};

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryKind {
    /// A model or adapters.
    Model,
    /// A dataset.
    Dataset,
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// What it holds.
    pub kind: RepositoryKind,
    /// `ORG/NAME`.
    pub name: String,
    /// A branch, tag or commit; `main` if none is given.
    pub revision: Option<String>,
}

impl Repository {
    /// Parses `ORG/NAME[@REV]` and what follows it: a path with `/` before it, or nothing. A slash in a revision is
    /// written `%2F`, except in the Hub's own `refs/pr/N` and `refs/convert/NAME`.
    pub fn parse(kind: RepositoryKind, text: &str) -> Option<(Self, &str)> {
        let end = |text: &str| text.find('/').unwrap_or(text.len());
        let slash = text.find('/')?;
        let name_end = slash + 1 + text[slash + 1..].find(['/', '@']).unwrap_or(text.len() - slash - 1);
        let (name, rest) = text.split_at(name_end);
        let (revision, folder) = match rest.strip_prefix('@') {
            None => (None, rest),
            Some(rest) => {
                let mut length = end(rest);
                if rest.starts_with("refs/pr/") || rest.starts_with("refs/convert/") {
                    length = rest.match_indices('/').nth(2).map_or(rest.len(), |(at, _)| at);
                }
                let (revision, folder) = rest.split_at(length);
                (Some(revision.replace("%2F", "/").replace("%2f", "/")), folder)
            }
        };
        let is_valid = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(known) && part != "." && part != ".."
        };
        let (org, own) = name.split_at(slash);
        let plain = is_valid(org) && is_valid(&own[1..]);
        let climbs = |text: &str| text.split('/').any(|part| part == "..");
        let revision_is_valid = revision.as_deref().is_none_or(|text| !text.is_empty() && !climbs(text));
        let folder_is_valid = folder.is_empty() || (folder.len() > 1 && !climbs(folder));
        let repository = Self { kind, name: name.to_owned(), revision };
        (plain && revision_is_valid && folder_is_valid).then_some((repository, folder.trim_start_matches('/')))
    }

    /// The revision, `main` by default.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Whether the revision is a full commit hash, whose files never change.
    pub fn is_commit(&self) -> bool {
        is_commit_hash(self.revision())
    }

    /// The same repository at another revision.
    pub fn at(&self, revision: &str) -> Self {
        Self { revision: Some(revision.to_owned()), ..self.clone() }
    }

    /// Its page, below the address of the Hub.
    pub fn page(&self) -> String {
        match self.kind {
            RepositoryKind::Model => self.name.clone(),
            RepositoryKind::Dataset => format!("datasets/{}", self.name),
        }
    }

    /// The path of its description at the revision, below the address of the Hub.
    pub fn info_path(&self) -> String {
        let kind = match self.kind {
            RepositoryKind::Model => "models",
            RepositoryKind::Dataset => "datasets",
        };
        format!("api/{kind}/{}/revision/{}", self.name, self.revision().replace('/', "%2F"))
    }

    /// Its folder in the cache.
    pub fn folder(&self, cache: &Path) -> PathBuf {
        let kind = match self.kind {
            RepositoryKind::Model => "models",
            RepositoryKind::Dataset => "datasets",
        };
        cache.join(format!("{kind}--{}", self.name.replace('/', "--")))
    }
}

/// Whether a text is the hash of a commit: of git's 40 digits, or 64 where a repository uses SHA-256.
pub fn is_commit_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.chars().all(|c| c.is_ascii_hexdigit())
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hub:{}", self.page())?;
        let Some(revision) = &self.revision else { return Ok(()) };
        match revision.starts_with("refs/pr/") || revision.starts_with("refs/convert/") {
            true => write!(f, "@{revision}"),
            false => write!(f, "@{}", revision.replace('/', "%2F")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_name_a_revision_and_a_folder() {
        let parse = |text| {
            let (repository, folder) = Repository::parse(RepositoryKind::Model, text)?;
            Some((repository.name, repository.revision, folder.to_owned()))
        };
        let parts = |name: &str, revision: Option<&str>, folder: &str| {
            Some((name.to_owned(), revision.map(str::to_owned), folder.to_owned()))
        };
        assert_eq!(parse("a/b"), parts("a/b", None, ""));
        assert_eq!(parse("a/b@v1"), parts("a/b", Some("v1"), ""));
        assert_eq!(parse("a/b/x/y"), parts("a/b", None, "x/y"));
        assert_eq!(parse("a/b@v1/x"), parts("a/b", Some("v1"), "x"));
        assert_eq!(parse("a/b@refs/pr/3/x"), parts("a/b", Some("refs/pr/3"), "x"));
        assert_eq!(parse("a/b@refs/convert/parquet"), parts("a/b", Some("refs/convert/parquet"), ""));
        assert_eq!(parse("a/b@feature%2Fv2/x"), parts("a/b", Some("feature/v2"), "x"));
        let typed = "a/b@feature%2Fv2";
        let printed = Repository::parse(RepositoryKind::Model, typed).map(|(repository, _)| repository.to_string());
        assert_eq!(printed.as_deref(), Some("hub:a/b@feature%2Fv2"));
        for wrong in ["", "a", "a/b@..%2Fx", "a/", "/b", "a/b@", "a/b/", "a/b/../c", "a/..", "a/b@..", "a b/c", "a/b*"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
