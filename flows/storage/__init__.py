"""Files that lie in an object store, by URL, instead of on this machine or a folder that it shares."""
