FROM argosy-stand-in:bookworm
RUN ln -s /usr/bin/python3 /usr/local/bin/python
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
COPY wheels /opt/stand-in/wheels
CMD ["python3"]
