"""What tests of several folders share: reference implementations, small runs, made-up stories, real servers."""
