"""The wire messages of `proto/kvern/v1`, generated when the package is built."""
