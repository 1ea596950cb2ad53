//! The formats of the tables in PostgreSQL: one file of SQL for each step from one to the next, never edited once
//! released. The table `catalog_versions` says which steps were taken. The views are made anew after them.

/// For each format, the step to it from the one before.
pub(super) const STEPS: [&str; 3] = [
    include_str!("schema/0001_catalog.sql"),
    include_str!("schema/0002_retention.sql"),
    include_str!("schema/0003_compact.sql"),
];

/// What management sees, in the latest format.
pub(super) const VIEWS: &str = include_str!("schema/views.sql");

/// The latest format.
pub(super) const LATEST: i32 = 3;

/// Whoever changes tables has this lock of the database: brokers that start together wait for one another. The number
/// means nothing; it is ours.
pub(super) const LOCK: &str = "SELECT pg_advisory_xact_lock(7523094288207664493)";

/// Made before anything else.
pub(super) const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS catalog_versions (version integer PRIMARY KEY, \
                                   taken_at timestamptz NOT NULL DEFAULT now())";

/// The format found, 0 for none.
pub(super) const FOUND: &str = "SELECT coalesce(max(version), 0) FROM catalog_versions";

/// Whether a table or view of the latest format is missing.
pub(super) const MISSING: &str = "SELECT count(*) FROM unnest(ARRAY['projected_brokers', 'projected_topics', \
    'projected_queues', 'projected_groups', 'projected_cursors', 'projected_transactions', 'catalog_brokers', \
    'catalog_topics', 'catalog_queues', 'catalog_groups', 'catalog_cursors', 'catalog_transactions']) name \
    WHERE to_regclass(name) IS NULL";

/// Notes a step.
pub(super) const TAKEN: &str = "INSERT INTO catalog_versions (version) VALUES ($1) ON CONFLICT DO NOTHING";

/// After tables came back empty: every broker's rows are to be written again.
pub(super) const FORGET: &str = "DELETE FROM projected_brokers";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_format_has_a_step() {
        assert_eq!(usize::try_from(LATEST).unwrap(), STEPS.len());
    }

    #[test]
    fn every_table_and_view_is_looked_for() {
        for file in STEPS.into_iter().chain([VIEWS]) {
            let names = file.lines().filter_map(|line| {
                let rest = line.strip_prefix("CREATE TABLE IF NOT EXISTS ");
                let rest = rest.or_else(|| line.strip_prefix("CREATE OR REPLACE VIEW "))?;
                rest.split_whitespace().next()
            });
            for name in names {
                assert!(MISSING.contains(&format!("'{name}'")), "{name}");
            }
        }
    }
}
