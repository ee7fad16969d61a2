"""What two or more of the five packages share: one subject a file, none of them imports a package."""
