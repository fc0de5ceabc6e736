"""Read and sample the frames of video files."""
