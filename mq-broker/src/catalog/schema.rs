//! The formats of the tables in PostgreSQL: one SQL file for each step from one format to the next, never
//! edited once released. The table `catalog_versions` records which steps were taken. After them the views
//! are recreated.

/// For each format, the step to it from the previous one.
pub(super) const STEPS: [&str; 3] = [
    include_str!("schema/0001_catalog.sql"),
    include_str!("schema/0002_retention.sql"),
    include_str!("schema/0003_compact.sql"),
];

/// The views for management tools, in the latest format.
pub(super) const VIEWS: &str = include_str!("schema/views.sql");

/// The latest format.
pub(super) const LATEST: i32 = 3;

/// Takes the advisory lock under which a broker changes tables, so that brokers that start together wait for
/// each other. The number is arbitrary.
pub(super) const LOCK: &str = "SELECT pg_advisory_xact_lock(7523094288207664493)";

/// Created before anything else.
pub(super) const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS catalog_versions (version integer PRIMARY KEY, \
                                   taken_at timestamptz NOT NULL DEFAULT now())";

/// The format found, 0 for none.
pub(super) const FOUND: &str = "SELECT coalesce(max(version), 0) FROM catalog_versions";

/// Whether a table or view of the latest format is missing.
pub(super) const MISSING: &str = "SELECT count(*) FROM unnest(ARRAY['projected_brokers', 'projected_topics', \
    'projected_queues', 'projected_groups', 'projected_cursors', 'projected_transactions', 'catalog_brokers', \
    'catalog_topics', 'catalog_queues', 'catalog_groups', 'catalog_cursors', 'catalog_transactions']) name \
    WHERE to_regclass(name) IS NULL";

/// Records that a step was taken.
pub(super) const TAKEN: &str = "INSERT INTO catalog_versions (version) VALUES ($1) ON CONFLICT DO NOTHING";

/// After tables were recreated empty: makes every broker write all its rows again.
pub(super) const FORGET: &str = "DELETE FROM projected_brokers";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_format_has_a_step() {
        assert_eq!(usize::try_from(LATEST).unwrap(), STEPS.len());
    }

    #[test]
    fn every_table_and_view_is_checked_for() {
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
